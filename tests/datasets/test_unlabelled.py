"""UnlabelledImages, its mixing with a labelled data set, and epochs of such a mixture."""

import pickle
from unittest import mock

import pytest
from mmdet.registry import DATA_SAMPLERS, DATASETS
from mmengine.config import Config, ConfigDict
from runs import fcos, run_config
from unlabelled import mixed_config, write_images

from rdimkd_det import ConfigError, UnlabelledImages
from rdimkd_det.datasets import LabelledEpochs
from rdimkd_det.datasets.mixing import add_unlabelled, drop_labels, without_drops
from rdimkd_det.datasets.unlabelled import count_images, share_metainfo

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=1.0),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'img_shape')),
]


# The data set


def test_images__of_all_folders_in_order(tmp_path):
    folder = write_images(tmp_path / 'images')
    (folder / '.trash').mkdir()
    (folder / '.trash/0.png').write_bytes(b'hidden')
    (folder / '._0.png').write_bytes(b'written by another system')
    dataset = DATASETS.build(ConfigDict(type='UnlabelledImages', data_root=str(folder)))
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    names = ['0.png', '2.png', '4.png', 'inner/1.png', 'inner/3.png', 'inner/5.png']
    assert [info['img_id'] for info in infos] == names
    assert infos[3]['img_path'] == str(folder / 'inner/1.png')
    assert (infos[3]['height'], infos[3]['width']) == (48, 80)


def test_samples__say_that_they_have_no_labels_whatever_the_pipeline_packs(tmp_path):
    dataset = UnlabelledImages(data_root=write_images(tmp_path), pipeline=PIPELINE)
    sample = dataset[0]['data_samples']
    assert sample.labelled is False and sample.img_shape == (48, 80)
    assert len(sample.gt_instances.bboxes) == len(sample.gt_instances.masks) == 0
    assert dataset[0]['inputs'].shape == (3, 48, 80)
    assert len(pickle.loads(pickle.dumps(dataset))) == 6  # as workers get it


def test_prefix__is_a_path_below_the_folder(tmp_path):
    write_images(tmp_path)
    dataset = UnlabelledImages(data_root=str(tmp_path), data_prefix=dict(img='inner'))
    assert dataset.get_data_info(0)['img_id'] == '1.png' and len(dataset) == 3


def test_mistakes__name_the_folder_and_the_files(tmp_path):
    def message(folder, **options) -> str:
        with pytest.raises(ConfigError) as raised:
            UnlabelledImages(data_root=str(folder), **options)
        return str(raised.value)

    assert message(tmp_path / 'none').startswith(
        f'UnlabelledImages: {tmp_path}/none is no folder; give a folder of images.'
    )
    (tmp_path / 'empty').mkdir()
    assert f'{tmp_path}/empty has no image' in message(tmp_path / 'empty')
    folder = write_images(tmp_path / 'images')
    for name in ('a.jpg', 'inner/b.PNG'):
        (folder / name).write_text('no image')
    assert message(folder) == (
        f'UnlabelledImages: 2 of 8 files in {folder} cannot be read as images: a.jpg, inner/b.PNG; '
        f'repair or remove them.'
    )
    assert 'no ann_file (x.json)' in message(folder, ann_file='x.json')


# Mixed with labelled images


def test_add_unlabelled__counts_classes_and_batches(files, tmp_path):
    cfg = mixed_config(files, tmp_path, per_batch=3)
    loader = cfg.train_dataloader
    assert (loader.batch_size, loader.sampler.type) == (5, 'MultiSourceSampler')
    dataset = DATASETS.build(loader.dataset)
    assert count_images(dataset) == (8, 6)
    assert isinstance(dataset.metainfo, list)  # MMDetection's answer to differing classes
    share_metainfo(dataset)
    assert dataset.metainfo['classes'] == ('red', 'green', 'blue')
    sampler = DATA_SAMPLERS.build(loader.sampler, default_args=dict(dataset=dataset, seed=0))
    batches = list(LabelledEpochs(sampler, 5))
    assert [[index >= 8 for index in batch] for batch in batches] == [[False] * 2 + [True] * 3] * 4
    assert sorted(index for batch in batches for index in batch[:2]) == list(range(8))


def test_add_unlabelled__iterations_need_no_epochs(files, tmp_path):
    loop = dict(type='IterBasedTrainLoop', max_iters=4)
    cfg = run_config(files / 'data', tmp_path, fcos())
    cfg.train_cfg = loop
    add_unlabelled(cfg, str(write_images(tmp_path)))
    assert cfg.train_dataloader.batch_sampler is None
    assert cfg.train_dataloader.sampler.source_ratio == [4, 4]


def test_without_drops__an_image_without_objects_is_kept(tmp_path):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='RandomCrop', crop_size=(32, 32)),
        dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)),
        dict(type='PackDetInputs'),
    ]
    kept = without_drops(pipeline)
    assert [step['type'] for step in kept] == [
        'LoadImageFromFile', 'LoadAnnotations', 'RandomCrop', 'PackDetInputs'
    ]  # fmt: skip
    assert pipeline[2] == dict(type='RandomCrop', crop_size=(32, 32))
    for crop in (kept[2], dict(type='RandomChoice', transforms=[pipeline[2:3]])):
        whole = without_drops([*pipeline[:2], crop, pipeline[-1]])
        dataset = UnlabelledImages(data_root=str(write_images(tmp_path)), pipeline=whole)
        assert dataset[0]['inputs'].shape == (3, 32, 32)


def test_drop_labels__mosaic_and_switched_pipelines(files, tmp_path):
    cfg = run_config(files / 'data', tmp_path, fcos())
    inner = cfg.train_dataloader.dataset
    loading, inner.pipeline = inner.pipeline, inner.pipeline[:3]
    packing = [dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)), dict(type='PackDetInputs')]
    mosaic = dict(type='Mosaic', img_scale=(64, 64))
    cfg.train_dataloader.dataset = dict(
        type='MultiImageMixDataset', dataset=inner, pipeline=[mosaic, *packing]
    )
    switch = dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=[*loading, packing[0]])
    cfg.custom_hooks = [switch]
    with pytest.raises(ConfigError, match='PipelineSwitchHook, which changes the pipeline of'):
        add_unlabelled(cfg.copy(), str(tmp_path))
    cfg.model = dict(losses=dict(neck=dict(loss_weight='auto')))
    drop_labels(cfg, str(write_images(tmp_path)))
    assert cfg.model.labels is False and cfg.model.losses.neck.loss_weight == 1
    assert cfg.val_dataloader is cfg.val_cfg is cfg.val_evaluator is None
    assert cfg.custom_hooks[0].switch_pipeline == loading
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert count_images(dataset) == (0, 6)
    assert dataset[0]['data_samples'].labelled is False


# Epochs


def batches_of(config: Config, epoch: int, batch_sampler: LabelledEpochs | None = None) -> list:
    if batch_sampler is None:
        batch_sampler = sampler_of(config)
    batch_sampler.sampler.set_epoch(epoch)
    return list(batch_sampler)


def sampler_of(config: Config) -> LabelledEpochs:
    loader = config.train_dataloader
    dataset = DATASETS.build(loader.dataset)
    sampler = DATA_SAMPLERS.build(loader.sampler, default_args=dict(dataset=dataset, seed=0))
    return DATA_SAMPLERS.build(
        loader.batch_sampler, default_args=dict(sampler=sampler, batch_size=loader.batch_size)
    )


def test_epochs__a_new_process_finds_the_batches_of_its_epoch(files, tmp_path):
    config = mixed_config(files, tmp_path)
    running = sampler_of(config)
    epochs = [batches_of(config, epoch, running) for epoch in range(3)]
    assert [len(batches) for batches in epochs] == [4] * 3 == [len(running)] * 3
    assert epochs[0] != epochs[1]
    for epoch in range(3):
        assert batches_of(config, epoch) == epochs[epoch]


def test_epochs__ranks_share_them(files, tmp_path):
    config = mixed_config(files, tmp_path)
    found = []
    for rank in range(2):
        of_mmdet = 'mmdet.datasets.samplers.multi_source_sampler.get_dist_info'
        with (
            mock.patch(of_mmdet, return_value=(rank, 2)),
            mock.patch('rdimkd_det.datasets.epochs.get_world_size', return_value=2),
        ):
            found += batches_of(config, 0)
    assert len(found) == 4
    assert sorted(index for batch in found for index in batch[:2]) == list(range(8))


def test_epochs__need_a_sampler_of_several_sources(files, tmp_path):
    config = mixed_config(files, tmp_path)
    config.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    with pytest.raises(ConfigError, match=r'LabelledEpochs needs sampler=.*got a Default'):
        sampler_of(config)
