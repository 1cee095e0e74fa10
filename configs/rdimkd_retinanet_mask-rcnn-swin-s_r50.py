# RdimKD (arXiv 2312.08700), Mask R-CNN Swin-S -> RetinaNet R50 on COCO.
#
# Teacher   mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco, OpenMMLab's published weights
# Student   retinanet_r50_fpn_1x_coco, as in MMDetection
# AP        teacher 48.2, student 36.5 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_retinanet_mask-rcnn-swin-s_r50.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_retinanet_mask-rcnn-swin-s_r50.py 8
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/swin/'
        'mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco/'
        'mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco_20210903_104808-b92c91f1.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
