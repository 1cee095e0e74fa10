# The RdimKD student on digits: fcos_r18.py and nothing but distillation on top. Its teacher first:
# python tools/train.py configs/digits/fcos_r50_teacher.py
_base_ = ['./fcos_r18.py', '../_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='configs/digits/fcos_r50_teacher.py',
        checkpoint='work_dirs/fcos_r50_teacher/epoch_8.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection', dim=64), loss_weight=1.0)
    ),
)
