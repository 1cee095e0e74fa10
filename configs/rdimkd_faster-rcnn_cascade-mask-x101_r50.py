# RdimKD (arXiv 2312.08700), Cascade Mask R-CNN X101 -> Faster R-CNN R50 on COCO.
#
# Teacher   cascade-mask-rcnn_x101-32x4d_fpn_20e_coco, OpenMMLab's published weights
# Student   faster-rcnn_r50_fpn_1x_coco, as in MMDetection
# AP        teacher 45.0, student 37.4 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_faster-rcnn_cascade-mask-x101_r50.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_faster-rcnn_cascade-mask-x101_r50.py 8
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', './_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::cascade_rcnn/cascade-mask-rcnn_x101-32x4d_fpn_20e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/cascade_rcnn/'
        'cascade_mask_rcnn_x101_32x4d_fpn_20e_coco/'
        'cascade_mask_rcnn_x101_32x4d_fpn_20e_coco_20200528_083917-ed1f4751.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
