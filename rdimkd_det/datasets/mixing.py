"""Changes a training's config to learn from images without labels, too or alone."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path

from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import Config

from ..errors import ConfigError
from ..files.configs import counts_iterations, leaf_datasets, mappings
from ..host.registry import find_type
from ..options import explained, type_name
from ..samples import fast_collate
from .unlabelled import UnlabelledImages

# Hooks that change the pipeline during a training, of a single data set only.
PIPELINE_SWITCHES = ('PipelineSwitchHook', 'YOLOXModeSwitchHook')
# Samplers that pass over a whole data set, with any images in a batch.
PLAIN_SAMPLERS = ('DefaultSampler', 'InfiniteSampler')
ENDLESS_SAMPLERS = ('MultiSourceSampler', 'GroupMultiSourceSampler')


def add_unlabelled(cfg: Config, folder: str, per_batch: int | None = None) -> str:
    """Mix the images of a folder into a training, in place, and return a line that says how.

    Each batch gets ``per_batch`` of them besides its labelled images, by default as many as these.
    An epoch stays a pass over the labelled images.
    """
    loader = _train_dataloader(cfg)
    size = loader.get('batch_size') or 1
    per_batch = per_batch or size
    for hook in cfg.get('custom_hooks') or ():
        if type_name(hook).rpartition('.')[2] in PIPELINE_SWITCHES:
            raise ConfigError(
                f'--unlabelled: custom_hooks has {type_name(hook)}, which changes the pipeline of '
                f'a single data set and cannot change those of two; drop the hook.'
            )
    both = size + per_batch
    loader.dataset = dict(
        type='ConcatDataset', datasets=[loader.dataset, _unlabelled_like(loader.dataset, folder)]
    )
    loader.batch_size = both
    loader.sampler = dict(
        type='MultiSourceSampler', batch_size=both, source_ratio=[size, per_batch]
    )
    loader.batch_sampler = None if counts_iterations(cfg) else dict(type='LabelledEpochs')
    return (
        f'each batch has {size} images with labels and {per_batch} without, from {folder}; an '
        f'epoch is a pass over those with labels'
    )


def drop_labels(cfg: Config, folder: str) -> str:
    """Make a distilled training one of the images of a folder alone, in place; say how."""
    loader = _train_dataloader(cfg)
    loader.dataset = _unlabelled_like(loader.dataset, folder)
    if type_name(loader.get('sampler') or {}) not in PLAIN_SAMPLERS:
        endless = counts_iterations(cfg)
        loader.sampler = dict(type=PLAIN_SAMPLERS[endless], shuffle=True)
    for hook in cfg.get('custom_hooks') or ():
        if 'switch_pipeline' in hook:
            hook.switch_pipeline = without_drops(hook.switch_pipeline)
    cfg.model.labels = False
    for loss in cfg.model.losses.values():
        if loss.get('loss_weight') == 'auto':  # there is no other loss to compare with
            loss.loss_weight = 1.0
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    return (
        f'only images without labels, from {folder}: the student learns up to the tapped modules, '
        f'there is no validation, and an epoch is a pass over these images'
    )


def check_images(dataset: Mapping) -> None:
    """Check that the folder of an ``UnlabelledImages`` holds images, and only readable ones."""
    kind = find_type(dataset, DATASETS) if dataset.get('type') else None
    if isinstance(kind, type) and issubclass(kind, UnlabelledImages):
        ignored = ('type', '_scope_', 'pipeline')
        options = {key: value for key, value in dataset.items() if key not in ignored}
        with explained('UnlabelledImages'):  # it hands options on, which BaseDataset may refuse
            kind(**options).full_init()


def check_mixing(cfg: Config) -> None:
    """Check that epochs end, and that images without labels meet a student that knows of them."""
    loader = cfg.train_dataloader
    batch_sampler = loader.get('batch_sampler')
    if type_name(loader.get('sampler') or {}) in ENDLESS_SAMPLERS and not (
        counts_iterations(cfg)
        or (batch_sampler and not type_name(batch_sampler).endswith('AspectRatioBatchSampler'))
    ):
        raise ConfigError(
            f'train_dataloader.sampler: {type_name(loader.sampler)} never ends an epoch; set '
            f"batch_sampler=dict(type='LabelledEpochs') to train_dataloader, or train with "
            f'train_cfg=dict(type="IterBasedTrainLoop", max_iters=...).'
        )
    kinds = [type_name(leaf) for leaf in leaf_datasets(loader.dataset)]
    model = cfg.get('model') or {}
    if UnlabelledImages.__name__ not in kinds or not model:
        return
    if type_name(model) != 'RdimKDDistiller':
        raise ConfigError(
            f'train_dataloader.dataset: a plain {type_name(model)} would learn that '
            f'UnlabelledImages hold no objects; only a distilled student learns from them.'
        )
    if collate := fast_collate(loader):
        raise ConfigError(
            f'train_dataloader.collate_fn: {collate} drops the metainfo that says which images '
            f"have no labels; take dict(type='pseudo_collate') and, as the student's "
            f"data_preprocessor, an 'mmdet.DetDataPreprocessor', as MMYOLO's configs that are not "
            f"'fast' have them."
        )
    preprocessor = (model.get('student') or {}).get('data_preprocessor') or {}
    if len(set(kinds)) > 1 and preprocessor.get('pad_seg'):
        raise ConfigError(
            'train_dataloader.dataset: images without labels have no segmentation map, which the '
            "student's data_preprocessor pads (pad_seg=True); train on them alone, with "
            'labels=False in the model.'
        )


def _train_dataloader(cfg: Config) -> Mapping:
    if not isinstance((cfg.get('train_dataloader') or {}).get('dataset'), Mapping):
        raise ConfigError(
            f'--unlabelled: config {cfg.filename} has no train_dataloader with a dataset, whose '
            f'pipeline the images without labels need.'
        )
    return cfg.train_dataloader


def _unlabelled_like(dataset: Mapping, folder: str) -> dict:
    """Return the config of an ``UnlabelledImages`` with the pipeline of a labelled data set."""
    if type_name(dataset) == 'MultiImageMixDataset':
        inner = _unlabelled_like(dataset['dataset'], folder)
        outer = without_drops(dataset['pipeline'], packed=True)
        return {**dataset, 'dataset': inner, 'pipeline': outer}
    leaf = next(leaf_datasets(dataset))
    metainfo = {'metainfo': leaf['metainfo']} if leaf.get('metainfo') else {}
    return {
        'type': 'UnlabelledImages',
        'data_root': str(Path(folder)),
        **metainfo,
        'pipeline': without_drops(leaf.get('pipeline') or []),
    }


def without_drops(pipeline: list, packed: bool = False) -> list[dict]:
    """Return a pipeline that drops no image for having no objects.

    If ``packed``, it packs outside of ``UnlabelledImages``, and must hand on what that says.
    """
    kept = [step for step in copy.deepcopy(pipeline) if type_name(step) != 'FilterAnnotations']
    for step in mappings(kept):  # RandomChoice and others have transforms inside
        if type_name(step) == 'RandomCrop' and 'crop_size' in step:  # Albumentations' has none
            step['allow_negative_crop'] = True
        elif packed and type_name(step) == 'PackDetInputs':
            default = inspect.signature(find_type(step, TRANSFORMS)).parameters['meta_keys'].default
            step['meta_keys'] = (*step.get('meta_keys', default), 'labelled')
    return kept
