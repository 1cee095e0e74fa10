# As rdimkd_yolox_nano_pico.py, with the labels of every other image only; the others come along
# without theirs.
# PYTHONPATH=. python tools/train.py configs/photos/bccd/rdimkd_yolox_nano_pico_unlabelled.py
_base_ = ['./rdimkd_yolox_nano_pico.py']

custom_imports = dict(imports=['rdimkd_det', 'experiments.photos.halves'])
pipeline = _base_.train_pipeline
labelled = dict(
    type='CocoDataset',
    data_root=_base_.data_root,
    metainfo=_base_.metainfo,
    ann_file='annotations/train.json',
    data_prefix=dict(img='images/'),
    indices=sorted([*range(0, 292, 2)] * 2),
    pipeline=pipeline,
)
unlabelled = dict(
    type='OtherHalf',
    listed='annotations/train.json',
    data_root=_base_.data_root,
    metainfo=_base_.metainfo,
    data_prefix=dict(img='images/'),
    pipeline=[*pipeline[:3], dict(pipeline[3], allow_negative_crop=True), *pipeline[4:]],
)
train_dataloader = dict(
    batch_size=16,
    sampler=dict(_delete_=True, type='MultiSourceSampler', batch_size=16, source_ratio=[8, 8]),
    batch_sampler=dict(type='LabelledEpochs'),
    dataset=dict(_delete_=True, type='ConcatDataset', datasets=[labelled, unlabelled]),
)
