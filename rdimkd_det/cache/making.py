"""Making a teacher cache: the teacher sees every training image once, and once flipped."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_dist_info, get_world_size
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from .. import functional
from ..distillation import Distillation
from ..errors import ConfigError
from ..files.configs import teacher_entries
from .facts import checkpoint_facts, model_facts, projection_facts
from .images import cacheable_datasets, entry_key, image_pipeline, unaugmented
from .store import LevelArrays, TeacherCache, split_levels

# Images that the size of an entry is measured on.
NUM_SAMPLES = 8
# Height and width in pixels of the padding that the teacher is shown: the middle feels no border.
PADDING_SIDE = 1024


def without_cache(cfg: Config) -> Config:
    """The config of the same training with the live teacher; one without a model as it is."""
    cfg = copy.deepcopy(cfg)
    model = cfg.get('model')
    if isinstance(model, Mapping):
        for _, teacher in teacher_entries(model.get('teacher')):
            teacher.pop('cache', None)
    return cfg


def cache_images(cfg: Config, flip: bool) -> Dataset:
    """Every training image as the pipeline makes it, without annotations; then flipped ones.

    Args:
        cfg (Config): Config of the training.
        flip (bool): Whether the training flips images.

    Raises:
        ConfigError: Two images would have the same key.
    """
    parts = []
    for flipped in (False, True) if flip else (False,):
        for leaf in cacheable_datasets(cfg.train_dataloader.dataset):
            pipeline = unaugmented(leaf['pipeline'], flipped)
            parts.append(DATASETS.build(ConfigDict({**leaf, 'pipeline': pipeline})))
        if not flipped:
            _check_names(parts)
    return ConcatDataset(parts)


def _check_names(datasets: Sequence[Dataset]) -> None:
    names = [entry_key(part.get_data_info(n)) for part in datasets for n in range(len(part))]
    doubles = len(names) - len(set(names))
    if doubles:
        raise ConfigError(
            f'teacher cache: {doubles} images have the img_id and file name of another one; give '
            f'each image its own.'
        )


def part_facts(part: Distillation, cfg: Config) -> dict:
    """What the cache of a teacher depends on.

    Args:
        part (Distillation): The teacher and its losses, live.
        cfg (Config): Config of the training.
    """
    return {
        **image_pipeline(cfg),
        **projection_facts(part.loss_configs, part.teacher_taps),
        **model_facts(part.teacher.model),
        **checkpoint_facts(part.teacher.checkpoint),
    }


def part_levels(part: Distillation) -> list[list]:
    """[tap, index] of the teacher's levels, in the order in which an entry holds their maps."""
    return [
        [part.teacher_taps[tap], teacher.index]
        for tap in part.taps
        for _, teacher in part.level_pairs[tap]
    ]


def use_bases(part: Distillation, cache: TeacherCache) -> None:
    """Project on what the entries of a cache were, and will be, projected on.

    Args:
        part (Distillation): The teacher and its losses, live.
        cache (TeacherCache): A cache of that teacher.

    Raises:
        ConfigError: It holds other levels.
    """
    if part_levels(part) != cache.about['levels']:
        raise ConfigError(
            f'teacher cache {cache.directory} holds the levels {cache.about["levels"]}, this '
            f'config needs {part_levels(part)}; make another one for it.'
        )
    projections = [projection for _, loss in part.items() for projection in loss.projections]
    for projection, arrays in zip(projections, cache.arrays):
        state = {'basis': arrays.basis, 'variance_kept': arrays.variance_kept}
        projection.load_state_dict({name: torch.from_numpy(a) for name, a in state.items()})


@torch.no_grad()
def coordinates(
    part: Distillation, preprocessor: nn.Module, batch: Mapping
) -> Iterator[tuple[str, tuple[int, int], list[np.ndarray]]]:
    """Coordinates of the teacher's maps, each image padded as if it were alone.

    A GPU is waited for once for all images of a size, not for each map.

    Args:
        part (Distillation): The teacher and its losses, live and fitted.
        preprocessor (nn.Module): The student's data preprocessor.
        batch (Mapping): Images (3, H, W) of any sizes in 'inputs', and 'data_samples'.

    Yields:
        tuple[str, tuple[int, int], list[np.ndarray]]: Key and (H, W) of an image, and its maps
        (d, h, w), float16, tap by tap and level by level.

    Raises:
        FloatingPointError: They are not finite, or beyond half precision.
    """
    groups: dict[torch.Size, list] = {}
    for image, sample in zip(batch['inputs'], batch['data_samples']):
        groups.setdefault(image.shape, []).append((image, sample))
    for group in groups.values():
        images, samples = zip(*group)
        data = preprocessor({'inputs': list(images), 'data_samples': list(samples)}, True)
        feats = part.teacher_feats(data['inputs'], data['data_samples'])
        levels = [
            functional.project(maps.float(), projection.basis).unflatten(2, maps.shape[2:])
            for tap, loss in part.items()
            for projection, maps in zip(loss.projections, feats[tap])
        ]
        shapes = [tuple(maps.shape[1:]) for maps in levels]
        rows = _in_half_precision(torch.cat([maps.flatten(1) for maps in levels], 1))
        for sample, row in zip(data['data_samples'], rows):
            image_shape = tuple(sample.metainfo['img_shape'][:2])
            yield entry_key(sample.metainfo), image_shape, split_levels(row, shapes)


def prepare_cache(
    directory: Path,
    part: Distillation,
    facts: Mapping,
    preprocessor: nn.Module,
    images: Dataset,
    shard_bytes: int,
) -> TeacherCache:
    """Start a cache: measure a few images, and write all but the shards.

    Args:
        directory (Path): Its directory.
        part (Distillation): The teacher and its losses, live and fitted.
        facts (Mapping): From :func:`part_facts`.
        preprocessor (nn.Module): The student's data preprocessor.
        images (Dataset): From :func:`cache_images`.
        shard_bytes (int): About how large a shard should become.
    """
    numbers = np.linspace(0, len(images) - 1, min(NUM_SAMPLES, len(images))).astype(int)
    samples = pseudo_collate([images[number] for number in numbers])
    sizes = [
        sum(level.nbytes for level in maps)
        for _, _, maps in coordinates(part, preprocessor, samples)
    ]
    entry_bytes = sum(sizes) // len(sizes)
    padding = padding_coordinates(part, preprocessor)
    projections = [projection for _, loss in part.items() for projection in loss.projections]
    arrays = [
        LevelArrays(*(tensor.cpu().numpy() for tensor in (p.basis, p.variance_kept, of_padding)))
        for p, of_padding in zip(projections, padding)
    ]
    of_each_process = -(-len(images) // get_world_size())
    about = {
        'facts': facts,
        'taps': {
            tap: [[level.index, level.stride, level.channels] for level in levels]
            for tap, levels in part.teacher.probe().items()
        },
        'levels': part_levels(part),
        'num_entries': len(images),
        'shard_entries': max(1, min(shard_bytes // entry_bytes, of_each_process)),
        'entry_bytes': entry_bytes,
    }
    return TeacherCache.create(directory, about, arrays)


@torch.no_grad()
def padding_coordinates(part: Distillation, preprocessor: nn.Module) -> list[Tensor]:
    """Coordinates (d,) of each level where the teacher sees nothing but padding.

    Args:
        part (Distillation): The teacher and its losses, live and fitted.
        preprocessor (nn.Module): The student's data preprocessor.
    """
    shape = (1, 3, PADDING_SIDE, PADDING_SIDE)
    blank = torch.full(shape, float(preprocessor.pad_value), device=preprocessor.device)
    # An image of no size: all of the batch is padding.
    feats = part.teacher_feats(blank, [DetDataSample(metainfo={'img_shape': (0, 0)})])
    return [
        maps[0, :, maps.shape[2] // 2, maps.shape[3] // 2].float() @ projection.basis
        for tap, loss in part.items()
        for projection, maps in zip(loss.projections, feats[tap])
    ]


def check_room(cache: TeacherCache) -> str:
    """Check that the rest of a cache fits on the disk.

    Returns:
        str: How large it will be, in a line.

    Raises:
        ConfigError: It will not fit.
    """
    about, free = cache.about, shutil.disk_usage(cache.directory).free
    entries = about['shard_entries'] * len(cache.missing_shards())
    needed = min(entries, about['num_entries']) * about['entry_bytes']
    size = about['num_entries'] * about['entry_bytes']
    line = (
        f'{about["num_entries"]} entries of about {about["entry_bytes"] / 1e6:.2f} MB make '
        f'{size / 1e9:.2f} GB; {needed / 1e9:.2f} GB are still to be written'
    )
    if needed > free:
        raise ConfigError(
            f'teacher cache {cache.directory}: {line}, and the disk has room for '
            f'{free / 1e9:.2f} GB; make room, give another --out, or lower the dim of the '
            f'projection.'
        )
    return line


def fill_cache(
    cache: TeacherCache,
    part: Distillation,
    preprocessor: nn.Module,
    images: Dataset,
    batch_size: int,
    num_workers: int,
    advance: Callable[[int], None],
) -> None:
    """Write the shards that are missing; of several processes, each writes its share.

    Args:
        cache (TeacherCache): The cache.
        part (Distillation): The teacher and its losses, live, with the bases of the cache.
        preprocessor (nn.Module): The student's data preprocessor.
        images (Dataset): From :func:`cache_images`.
        batch_size (int): Images that are loaded at once.
        num_workers (int): Processes that load them.
        advance (Callable): Told the number of entries of each shard that has been written.
    """
    rank, world_size = get_dist_info()
    size = cache.about['shard_entries']
    shards = {
        number: range(number * size, min((number + 1) * size, len(images)))
        for number in cache.missing_shards()
        if number % world_size == rank  # by its number: the others may be writing already
    }
    batches = [
        numbers[start : start + batch_size]
        for numbers in shards.values()
        for start in range(0, len(numbers), batch_size)
    ]
    loader = DataLoader(
        images, batch_sampler=batches, num_workers=num_workers, collate_fn=pseudo_collate
    )
    stream = iter(loader)
    for number, numbers in shards.items():
        entries = {}
        for batch in islice(stream, -(-len(numbers) // batch_size)):
            for key, shape, maps in coordinates(part, preprocessor, batch):
                entries[key] = shape, maps
        cache.write_shard(number, entries)
        advance(len(numbers))


def _in_half_precision(rows: Tensor) -> np.ndarray:
    stored = rows.half().cpu()
    if not stored.isfinite().all():
        raise FloatingPointError(
            "teacher cache: the teacher's maps hold NaN, infinity, or values beyond half "
            'precision (65504); is its checkpoint sound, and its input what it expects?'
        )
    return stored.numpy()
