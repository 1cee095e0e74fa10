# The RdimKD student: faster_rcnn_r18.py and nothing but distillation on top. Its teacher first:
# python tools/train.py configs/photos/aquarium/yolox_nano_teacher.py
_base_ = ['./faster_rcnn_r18.py', '../../_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='configs/photos/aquarium/yolox_nano_teacher.py',
        checkpoint='work_dirs/yolox_nano_teacher/epoch_12.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
