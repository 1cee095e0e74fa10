# The teacher on digits: ResNet-50 of half width, 8 epochs.
_base_ = ['./_base_/digits.py']

model = dict(
    backbone=dict(depth=50, base_channels=32), neck=dict(in_channels=[128, 256, 512, 1024])
)
max_epochs = 8
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
