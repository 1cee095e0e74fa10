# RdimKD (arXiv 2312.08700), GFL R101 -> R50 on COCO.
#
# Teacher   gfl_r101_fpn_ms-2x_coco, OpenMMLab's published weights
# Student   gfl_r50_fpn_1x_coco, as in MMDetection
# AP        teacher 44.7, student 40.2 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_gfl_r101_r50.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_gfl_r101_r50.py 8
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py', './_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/'
        'gfl_r101_fpn_mstrain_2x_coco/'
        'gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
