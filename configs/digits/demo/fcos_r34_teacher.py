# The demo's teacher: ResNet-34 of half the width under the student's FPN and head; batches of 8,
# 5 epochs.
_base_ = ['./fcos_r18_narrow.py']

model = dict(backbone=dict(depth=34, base_channels=32), neck=dict(in_channels=[32, 64, 128, 256]))
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
max_epochs = 5
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
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
