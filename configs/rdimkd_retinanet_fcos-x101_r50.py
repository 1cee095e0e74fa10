# RdimKD (arXiv 2312.08700), FCOS X101 -> RetinaNet R50 on COCO.
#
# Teacher   fcos_x101-64x4d_fpn_gn-head_ms-640-800-2x_coco, OpenMMLab's published weights
# Student   retinanet_r50_fpn_1x_coco, as in MMDetection
# AP        teacher 42.6, student 36.5 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_retinanet_fcos-x101_r50.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_retinanet_fcos-x101_r50.py 8
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::fcos/fcos_x101-64x4d_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/fcos/'
        'fcos_x101_64x4d_fpn_gn-head_mstrain_640-800_2x_coco/'
        'fcos_x101_64x4d_fpn_gn-head_mstrain_640-800_2x_coco-ede514a8.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
