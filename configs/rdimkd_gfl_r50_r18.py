# RdimKD (arXiv 2312.08700), GFL R50 -> R18 on COCO.
#
# Teacher   gfl_r50_fpn_ms-2x_coco, OpenMMLab's published weights
# Student   gfl_r50_fpn_1x_coco, as in MMDetection but for its ResNet-18
# AP        teacher 42.9, student - (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_gfl_r50_r18.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_gfl_r50_r18.py 8
_base_ = ['./_base_/gfl_r18_fpn_1x_coco.py', './_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::gfl/gfl_r50_fpn_ms-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/'
        'gfl_r50_fpn_mstrain_2x_coco/'
        'gfl_r50_fpn_mstrain_2x_coco_20200629_213802-37bb1edc.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
