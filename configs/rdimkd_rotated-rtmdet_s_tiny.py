# RdimKD (arXiv 2312.08700), rotated RTMDet s -> tiny on DOTA 1.0. Needs MMRotate.
#
# Teacher   rotated_rtmdet_s-3x-dota, OpenMMLab's published weights
# Student   rotated_rtmdet_tiny-3x-dota, as in MMRotate
# mAP       teacher 76.93, student 75.60 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_rotated-rtmdet_s_tiny.py --auto-scale-lr
_base_ = ['mmrotate::rotated_rtmdet/rotated_rtmdet_tiny-3x-dota.py']

# Another base cannot add DistillHook: its list would clash with RTMDet's own custom_hooks.
custom_imports = dict(imports=['rdimkd_det'], allow_failed_imports=False)
custom_hooks = [*_base_.custom_hooks, dict(type='DistillHook')]

# MMRotate's config is for one GPU with 8 images, and has no entry for this.
auto_scale_lr = dict(enable=False, base_batch_size=8)

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmrotate::rotated_rtmdet/rotated_rtmdet_s-3x-dota.py',
        checkpoint='https://download.openmmlab.com/mmrotate/v1.0/rotated_rtmdet/'
        'rotated_rtmdet_s-3x-dota/rotated_rtmdet_s-3x-dota-11f6ccf5.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
