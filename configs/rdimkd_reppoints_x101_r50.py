# RdimKD (arXiv 2312.08700), RepPoints X101 -> R50 on COCO.
#
# Teacher   reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco, OpenMMLab's published weights
# Student   reppoints-moment_r50_fpn-gn_head-gn_1x_coco, as in MMDetection
# AP        teacher 44.2, student 38.1 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_reppoints_x101_r50.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_reppoints_x101_r50.py 8
_base_ = ['mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py', './_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::reppoints/reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/reppoints/'
        'reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco/'
        'reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco_20200329-f87da1ea.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
