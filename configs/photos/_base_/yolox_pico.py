# YOLOX-nano of half the width: 0.23 M parameters.
_base_ = ['./yolox_nano.py']

model = dict(
    backbone=dict(widen_factor=0.125),
    neck=dict(in_channels=[32, 64, 128], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
)
