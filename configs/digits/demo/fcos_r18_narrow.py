# The demo's plain student: that of the experiments with an FPN and head of half the channels, and 3
# epochs in batches of 12, which takes a third of the time.
_base_ = ['../fcos_r18.py']

model = dict(neck=dict(out_channels=64), bbox_head=dict(in_channels=64, feat_channels=64))
train_dataloader = dict(batch_size=12)
optim_wrapper = dict(optimizer=dict(fused=True))
max_epochs = 3
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
