# The plain student on digits: ResNet-18 of a quarter of the width, 4 epochs.
_base_ = ['./_base_/digits.py']

model = dict(backbone=dict(depth=18, base_channels=16), neck=dict(in_channels=[16, 32, 64, 128]))
