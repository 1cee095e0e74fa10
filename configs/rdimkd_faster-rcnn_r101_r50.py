# RdimKD (arXiv 2312.08700), Faster R-CNN R101 -> R50 on COCO.
#
# Teacher   faster-rcnn_r101_fpn_2x_coco, OpenMMLab's published weights
# Student   faster-rcnn_r50_fpn_1x_coco, as in MMDetection
# AP        teacher 39.8, student 37.4 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_faster-rcnn_r101_r50.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_faster-rcnn_r101_r50.py 8
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', './_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/'
        'faster_rcnn_r101_fpn_2x_coco/'
        'faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
