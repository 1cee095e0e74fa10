# RdimKD (arXiv 2312.08700), RTMDet l -> s on COCO.
#
# Teacher   rtmdet_l_8xb32-300e_coco, OpenMMLab's published weights
# Student   rtmdet_s_8xb32-300e_coco, as in MMDetection
# AP        teacher 51.3, student 44.5 (both published), RdimKD -   (- : not run yet)
# 1 GPU     python tools/train.py configs/rdimkd_rtmdet_l_s.py --auto-scale-lr
# 8 GPUs    tools/dist_train.sh configs/rdimkd_rtmdet_l_s.py 8
_base_ = ['mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py']

# Another base cannot add DistillHook: its list would clash with RTMDet's own custom_hooks.
custom_imports = dict(imports=['rdimkd_det'], allow_failed_imports=False)
custom_hooks = [*_base_.custom_hooks, dict(type='DistillHook')]

# The learning rate is for batches of 8 x 32 images; MMDetection's config inherits a base of 16.
auto_scale_lr = dict(base_batch_size=256)

model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/rtmdet/'
        'rtmdet_l_8xb32-300e_coco/'
        'rtmdet_l_8xb32-300e_coco_20220719_112030-5a0be7c4.pth',
    ),
    losses=dict(
        neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
    ),
)
