# The demo's RdimKD student: fcos_r18_narrow.py and nothing but distillation on top. Train it by
# `make demo`, which trains the teacher first.
_base_ = ['./fcos_r18_narrow.py', '../../_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='configs/digits/demo/fcos_r34_teacher.py',
        checkpoint='work_dirs/fcos_r34_teacher/epoch_5.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection', dim=32), loss_weight=1.0)
    ),
)
