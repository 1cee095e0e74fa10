# RdimKD (arXiv 2312.08700), FCOS R101 -> R50 on COCO.
#
# Teacher   fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco, OpenMMLab's published weights
# Student   fcos_r50-caffe_fpn_gn-head_1x_coco, as in MMDetection
# AP        teacher 40.8, student 36.6 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_fcos_r101_r50.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_fcos_r101_r50.py 8
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', './_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/fcos/'
        'fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco/'
        'fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
