# The teacher: YOLOX-nano, fine-tuned from its COCO weights for 12 epochs.
_base_ = ['../_base_/yolox_nano.py', '../_base_/aquarium.py']

model = dict(bbox_head=dict(num_classes=7))
load_from = 'data/yolox_nano_coco_mmdet.pth'
optim_wrapper = dict(optimizer=dict(lr=1e-3))
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
