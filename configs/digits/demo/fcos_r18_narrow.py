# The demo's plain student: that of the experiments with an FPN and head of half the channels, which
# takes half the time.
_base_ = ['../fcos_r18.py']

model = dict(neck=dict(out_channels=64), bbox_head=dict(in_channels=64, feat_channels=64))
