# RdimKD (arXiv 2312.08700), YOLOv8 m -> s of MMYOLO on COCO. Needs mmyolo-open (docs/pairs.md).
#
# Teacher   yolov8_m_syncbn_fast_8xb16-500e_coco, OpenMMLab's published weights
# Student   yolov8_s_syncbn_fast_8xb16-500e_coco, as in MMYOLO
# AP        teacher 49.8, student 44.2 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_mmyolo-yolov8_m_s.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_mmyolo-yolov8_m_s.py 8
_base_ = ['mmyolo::yolov8/yolov8_s_syncbn_fast_8xb16-500e_coco.py']

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
        config='mmyolo::yolov8/yolov8_m_syncbn_fast_8xb16-500e_coco.py',
        checkpoint='https://download.openmmlab.com/mmyolo/v0/yolov8/'
        'yolov8_m_syncbn_fast_8xb16-500e_coco/'
        'yolov8_m_syncbn_fast_8xb16-500e_coco_20230115_192200-c22e560a.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
