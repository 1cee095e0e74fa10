# RdimKD (arXiv 2312.08700), ATSS R101 -> R50 on COCO.
#
# Teacher   atss_r101_fpn_1x_coco, OpenMMLab's published weights
# Student   atss_r50_fpn_1x_coco, as in MMDetection
# AP        teacher 41.5, student 39.4 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_atss_r101_r50.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_atss_r101_r50.py 8
_base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py', './_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::atss/atss_r101_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/atss/atss_r101_fpn_1x_coco/'
        'atss_r101_fpn_1x_20200825-dfcadd6f.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
