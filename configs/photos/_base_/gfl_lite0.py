# GFL with an ImageNet-pretrained EfficientNet-Lite0 and an FPN of 64 channels on strides 8, 16, 32.
_base_ = ['./gfl_r18.py']

model = dict(
    data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3),
    backbone=dict(_delete_=True, type='experiments.photos.efficientnet_lite.EfficientNetLite0'),
    neck=dict(in_channels=[40, 112, 320], out_channels=64, start_level=0),
    bbox_head=dict(in_channels=64, feat_channels=64),
)
