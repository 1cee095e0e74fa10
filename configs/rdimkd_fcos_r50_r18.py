# RdimKD (arXiv 2312.08700), FCOS R50 -> FCOS R18 on COCO.
#
# Teacher   FCOS R50-caffe with centre sampling and GIoU, 1x, OpenMMLab's published weights. It
#           needs caffe BGR input, which the bridge makes from the student's RGB batch.
# Student   FCOS R18, large-scale jitter, AMP, as in MMDetection.
# AP        teacher 38.7 (as its authors publish it), student -, RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_fcos_r50_r18.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_fcos_r50_r18.py 8
_base_ = [
    'mmdet::fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.py',
    './_base_/distill.py',
]

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/fcos/'
        'fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_1x_coco/'
        'fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_1x_coco-0a0d75a8.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
