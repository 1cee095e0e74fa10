# The demo's teacher: ResNet-34 of half the width, 5 epochs; FPN and head of 64 channels.
_base_ = ['./fcos_r18_narrow.py']

model = dict(backbone=dict(depth=34, base_channels=32), neck=dict(in_channels=[32, 64, 128, 256]))
max_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
