# RdimKD (arXiv 2312.08700), Mask R-CNN R101 -> R50 on COCO.
#
# Teacher   mask-rcnn_r101_fpn_2x_coco, OpenMMLab's published weights
# Student   mask-rcnn_r50_fpn_1x_coco, as in MMDetection
# AP        teacher 40.8, student 38.2 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_mask-rcnn_r101_r50.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_mask-rcnn_r101_r50.py 8
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::mask_rcnn/mask-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/'
        'mask_rcnn_r101_fpn_2x_coco/'
        'mask_rcnn_r101_fpn_2x_coco_bbox_mAP-0.408__segm_mAP-0.366_20200505_071027-14b391c7.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
