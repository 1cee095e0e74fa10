# RdimKD (arXiv 2312.08700), YOLOv8 s -> n of MMYOLO on COCO. Needs mmyolo-open (docs/pairs.md).
#
# Teacher   yolov8_s_syncbn_fast_8xb16-500e_coco, OpenMMLab's published weights
# Student   yolov8_n_syncbn_fast_8xb16-500e_coco, as in MMYOLO
# AP        teacher 44.2, student 37.2 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_mmyolo-yolov8_s_n.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_mmyolo-yolov8_s_n.py 8
_base_ = ['mmyolo::yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco.py']

# Another base cannot add DistillHook: its list would clash with YOLOv8's own custom_hooks.
custom_imports = dict(imports=['rdimkd_det'], allow_failed_imports=False)
custom_hooks = [*_base_.custom_hooks, dict(type='DistillHook')]

# The learning rate is for batches of 8 x 16 images.
auto_scale_lr = dict(base_batch_size=128)

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmyolo::yolov8/yolov8_s_syncbn_fast_8xb16-500e_coco.py',
        checkpoint='https://download.openmmlab.com/mmyolo/v0/yolov8/'
        'yolov8_s_syncbn_fast_8xb16-500e_coco/'
        'yolov8_s_syncbn_fast_8xb16-500e_coco_20230117_180101-5aa5f0f1.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
