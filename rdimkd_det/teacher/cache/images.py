"""Which images can be cached: those that the training pipeline reproduces bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from ...datasets.mixing import PIPELINE_SWITCHES
from ...errors import ConfigError
from ...files.configs import as_json
from ...options import PACKAGES, type_name
from ...samples import fast_collate

# Allow-lists: any other transform may draw random numbers or mix images. Another package's Resize
# may do anything.
MAKES_THE_IMAGE = ('LoadImageFromFile', 'Resize', 'FixScaleResize', 'FixShapeResize', 'Pad')
LOADS = ('LoadAnnotations', 'LoadPanopticAnnotations', 'LoadProposals')
LEAVES_THE_IMAGE = (*LOADS, 'FilterAnnotations')
WRAPPERS = ('RepeatDataset', 'ClassBalancedDataset', 'ConcatDataset')
PREPROCESSORS = ('DetDataPreprocessor', 'BoxInstDataPreprocessor')
META_KEYS = ('img_id', 'img_path', 'img_shape', 'flip')
# Options that do not affect the pixels.
IRRELEVANT_OPTIONS = ('backend_args', 'file_client_args', '_scope_')


def entry_key(metainfo: Mapping, parts: int) -> str:
    """Return the cache key of an image, e.g. '139:000000000139.jpg', or with '+flip' at its end.

    It has the last ``parts`` parts of the path. The directory is left out where it is not needed to
    tell images apart, so that a dataset can be moved.
    """
    flip = '+flip' if metainfo.get('flip') else ''
    path = '/'.join(Path(metainfo['img_path']).parts[-parts:])
    return f'{metainfo["img_id"]}:{path}{flip}'


def parts_needed(images: Sequence[Mapping]) -> int:
    """Return how many parts of their paths tell images apart, the same file being one image."""
    different = {(image['img_id'], Path(image['img_path'])) for image in images}
    most = max((len(path.parts) for _, path in different), default=1)
    for parts in range(1, most):
        keys = {(number, path.parts[-parts:]) for number, path in different}
        if len(keys) == len(different):
            return parts
    return most


def cacheable_datasets(dataset: Mapping) -> Iterator[Mapping]:
    """Yield the configs of the datasets below wrappers; any that may mix images is refused."""
    kind = type_name(dataset)
    if kind == 'ConcatDataset':
        for part in dataset['datasets']:
            yield from cacheable_datasets(part)
    elif kind in WRAPPERS:
        yield from cacheable_datasets(dataset['dataset'])
    elif not dataset.keys() & {'dataset', 'datasets'}:
        yield dataset
    else:
        _refuse(kind, f'a cache can see through {", ".join(WRAPPERS)} only; take the {kind} out')


def image_pipeline(cfg: Config) -> dict:
    """Describe what a training run does to an image before the teacher sees it, in JSON types.

    These are 'transforms', the configs of those that change the image, with the position of
    'RandomFlip'; 'batch_augments' of the student's preprocessor; and 'flip', whether images are
    flipped. What does not give the same image each time is refused, with the remedy.
    """
    if collate := fast_collate(cfg.train_dataloader):
        _refuse(collate, 'train with the live teacher, without cache=...')
    scope = cfg.get('default_scope') or 'mmdet'
    if scope not in PACKAGES:
        _refuse(
            f'default_scope={scope!r}',
            f"set default_scope='mmdet' and write '{scope}.' before the names of {scope}",
        )
    datasets = cacheable_datasets(cfg.train_dataloader['dataset'])
    pipelines = [_transforms(dataset['pipeline']) for dataset in datasets]
    for pipeline in pipelines[1:]:
        if pipeline != pipelines[0]:
            _refuse('ConcatDataset', 'give the data sets in it the same pipeline')
    for hook in cfg.get('custom_hooks') or ():
        if type_name(hook).rpartition('.')[2] in PIPELINE_SWITCHES:
            _refuse(type_name(hook), 'drop the hook, which changes the pipeline during training')
    return {**pipelines[0], 'batch_augments': _batch_augments(cfg)}


def unaugmented(pipeline: list, flip: bool) -> list[dict]:
    """Return a pipeline without annotations and randomness, which flips all images or none."""
    kept = [dict(step) for step in pipeline if type_name(step) not in LEAVES_THE_IMAGE]
    for step in kept:
        if type_name(step) == 'RandomFlip':
            step['prob'] = float(flip)
    return kept


def _transforms(pipeline: list) -> dict:
    kept, flips = [], []
    for step in pipeline:
        kind = type_name(step)
        options = {key: value for key, value in step.items() if key not in IRRELEVANT_OPTIONS}
        if kind == 'RandomFlip':
            prob, direction = step.get('prob') or 0, step.get('direction', 'horizontal')
            if direction != 'horizontal' or not isinstance(prob, (int, float)):
                remedy = "flip in the one direction 'horizontal' only, with one probability"
                _refuse(kind, remedy)
            flips.append(prob)
            kept.append({'type': kind})
        elif kind == 'PackDetInputs':
            needed = META_KEYS if flips else META_KEYS[:-1]
            missing = [key for key in needed if key not in step.get('meta_keys', META_KEYS)]
            if missing:
                _refuse(kind, f'add {", ".join(missing)} to its meta_keys')
        elif kind in MAKES_THE_IMAGE:
            kept.append({**options, 'type': kind})
        elif kind not in LEAVES_THE_IMAGE:
            _refuse(
                kind,
                f'take it out, train with the live teacher (without cache=...), or use only '
                f'{", ".join((*MAKES_THE_IMAGE, "RandomFlip"))}',
            )
    if len(flips) > 1:
        _refuse('RandomFlip', 'give it once, not more often')
    return {'transforms': as_json(kept), 'flip': any(flips)}


def _batch_augments(cfg: Config) -> list:
    # The student's preprocessor is looked up like `RdimKDDistiller` and the Runner do.
    places = (cfg.model.get('student', {}), cfg.model, cfg)
    found = (place['data_preprocessor'] for place in places if 'data_preprocessor' in place)
    preprocessor = next(found, None) or {}
    if 'type' in preprocessor and type_name(preprocessor) not in PREPROCESSORS:
        _refuse(type_name(preprocessor), f'take one of {", ".join(PREPROCESSORS)}')
    augments = [{**it, 'type': type_name(it)} for it in preprocessor.get('batch_augments') or ()]
    for augment in augments:
        if augment['type'] != 'BatchFixedSizePad':
            _refuse(augment['type'], 'take it out of data_preprocessor.batch_augments')
    return as_json(augments)


def _refuse(name: str, remedy: str) -> None:
    raise ConfigError(
        f'teacher cache: the training pipeline has {name}, so that an image changes from one '
        f'time to the next or cannot be found in the cache; {remedy}.'
    )
