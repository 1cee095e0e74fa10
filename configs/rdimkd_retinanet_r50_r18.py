# RdimKD (arXiv 2312.08700), RetinaNet R50 -> R18 on COCO.
#
# Teacher   retinanet_r50_fpn_2x_coco, OpenMMLab's published weights
# Student   retinanet_r18_fpn_1x_coco, as in MMDetection
# AP        teacher 37.4, student 31.7 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_retinanet_r50_r18.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_retinanet_r50_r18.py 8
_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', './_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::retinanet/retinanet_r50_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/'
        'retinanet_r50_fpn_2x_coco/retinanet_r50_fpn_2x_coco_20200131-fdb43119.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
