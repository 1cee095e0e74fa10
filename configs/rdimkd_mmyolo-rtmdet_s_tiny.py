# RdimKD (arXiv 2312.08700), RTMDet s -> tiny of MMYOLO on COCO. Needs mmyolo-open (docs/pairs.md).
#
# Teacher   rtmdet_s_syncbn_fast_8xb32-300e_coco, OpenMMLab's published weights
# Student   rtmdet_tiny_syncbn_fast_8xb32-300e_coco, as in MMYOLO
# AP        teacher 44.6, student 41.0 (both published), RdimKD -   (- : not run yet)
#           41.8 by the distillation that MMYOLO publishes: the number to beat
# 1 GPU     python tools/train.py configs/rdimkd_mmyolo-rtmdet_s_tiny.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_mmyolo-rtmdet_s_tiny.py 8
_base_ = ['mmyolo::rtmdet/rtmdet_tiny_syncbn_fast_8xb32-300e_coco.py']

# Another base cannot add DistillHook: its list would clash with RTMDet's own custom_hooks.
custom_imports = dict(imports=['rdimkd_det'], allow_failed_imports=False)
custom_hooks = [*_base_.custom_hooks, dict(type='DistillHook')]

# The learning rate is for batches of 8 x 32 images.
auto_scale_lr = dict(base_batch_size=256)

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmyolo::rtmdet/rtmdet_s_syncbn_fast_8xb32-300e_coco.py',
        checkpoint='https://download.openmmlab.com/mmyolo/v0/rtmdet/'
        'rtmdet_s_syncbn_fast_8xb32-300e_coco/'
        'rtmdet_s_syncbn_fast_8xb32-300e_coco_20221230_182329-0a8c901a.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
