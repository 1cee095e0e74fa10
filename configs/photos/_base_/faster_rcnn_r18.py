# Faster R-CNN with GFL's ResNet-18 of half the width and FPN of 128 channels on strides 8, 16, 32.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py']

strides = [8, 16, 32]
model = dict(
    backbone=dict(depth=18, base_channels=32, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=128, start_level=1, num_outs=3),
    rpn_head=dict(
        in_channels=128,
        feat_channels=128,
        anchor_generator=dict(scales=[2, 4], strides=strides),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128, featmap_strides=strides),
        bbox_head=dict(in_channels=128, fc_out_channels=256),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=300), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(max_per_img=300)),
)
