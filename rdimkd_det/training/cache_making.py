"""Making a teacher cache: run the teacher on every training image, and on its flip if used."""

from __future__ import annotations

import hashlib
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
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from .. import functional
from ..distiller.distillation import Distillation
from ..errors import ConfigError
from ..projections import Projection
from ..teacher.cache.images import cacheable_datasets, entry_key, parts_needed, unaugmented
from ..teacher.cache.shards import split_levels
from ..teacher.cache.store import LevelTensors, TeacherCache

# Number of images from which the size of an entry is estimated.
NUM_SAMPLES = 8
# Height and width in pixels of an input that is all padding, large enough that borders do not
# affect its centre.
PADDING_SIDE = 1024


def cache_images(cfg: Config, flip: bool) -> tuple[Dataset, dict]:
    """Return the dataset of all images to cache, without annotations: unflipped, then flipped.

    With it come the facts 'images', which stands for the keys of the unflipped ones, in their
    order; and 'path_parts', the parts of a path in a key. A file that is there twice is one image.
    """
    parts = [
        DATASETS.build(ConfigDict({**leaf, 'pipeline': unaugmented(leaf['pipeline'], flipped)}))
        for flipped in ((False, True) if flip else (False,))
        for leaf in cacheable_datasets(cfg.train_dataloader.dataset)
    ]
    unflipped = parts[: len(parts) // 2] if flip else parts
    images = [part.get_data_info(number) for part in unflipped for number in range(len(part))]
    path_parts = parts_needed(images)
    numbers: dict[str, int] = {}
    for number, image in enumerate(images):
        numbers.setdefault(entry_key(image, path_parts), number)
    chosen = list(numbers.values())
    if flip:
        chosen += [len(images) + number for number in chosen]
    digest = hashlib.sha256('\n'.join(numbers).encode(errors='surrogatepass')).hexdigest()
    facts = {'images': f'{len(numbers)} (their names: {digest[:8]})', 'path_parts': path_parts}
    return Subset(ConcatDataset(parts), chosen), facts


def part_levels(part: Distillation) -> list[list]:
    """Return [tap, index] of the teacher's levels, in the order of the maps in an entry."""
    return [
        [part.teacher_taps[tap], teacher.index]
        for tap in part.taps
        for _, teacher in part.level_pairs[tap]
    ]


def use_bases(part: Distillation, cache: TeacherCache) -> None:
    """Load the bases of a cache, so that new entries are projected like the existing ones."""
    if part_levels(part) != cache.about['levels']:
        raise ConfigError(
            f'teacher cache {cache.directory} holds the levels {cache.about["levels"]}, this '
            f'config needs {part_levels(part)}; make another one for it.'
        )
    for projection, tensors in zip(_projections(part), cache.tensors):
        tensors.load_into(projection)


def _projections(part: Distillation) -> list[Projection]:
    return [projection for _, loss in part.items() for projection in loss.projections]


@torch.no_grad()
def coordinates(
    part: Distillation, preprocessor: nn.Module, batch: Mapping, path_parts: int
) -> Iterator[tuple[str, tuple[int, int], list[np.ndarray]]]:
    """Project the teacher's maps of a batch, with each image padded as if it were alone.

    Images of the same size form one batch, which needs a single wait for the GPU. Yields key and
    (H, W) of an image, and its maps (d, h, w), float16, tap by tap and level by level.
    """
    groups: dict[torch.Size, list] = {}
    for image, sample in zip(batch['inputs'], batch['data_samples']):
        groups.setdefault(image.shape, []).append((image, sample))
    for group in groups.values():
        images, samples = zip(*group)
        data = preprocessor({'inputs': list(images), 'data_samples': list(samples)}, True)
        levels = _projected(part, data['inputs'], data['data_samples'])
        shapes = [tuple(maps.shape[1:]) for maps in levels]
        rows = torch.cat([maps.flatten(1) for maps in levels], 1).half().cpu()
        if not rows.isfinite().all():
            raise FloatingPointError(
                "teacher cache: the teacher's maps hold NaN, infinity, or values beyond half "
                'precision (65504); is its checkpoint sound, and its input what it expects?'
            )
        for sample, row in zip(data['data_samples'], rows.numpy()):
            image_shape = tuple(sample.metainfo['img_shape'][:2])
            yield entry_key(sample.metainfo, path_parts), image_shape, split_levels(row, shapes)


def _projected(part: Distillation, inputs: Tensor, data_samples: Sequence) -> list[Tensor]:
    """Return the teacher's projected maps (N, d, h, w) of a batch, one per level."""
    feats = part.teacher_feats(inputs, data_samples)
    maps = [of_level for tap in part.taps for of_level in feats[tap]]
    return [
        functional.project(m.float(), projection.basis).unflatten(2, m.shape[2:])
        for m, projection in zip(maps, _projections(part))
    ]


def prepare_cache(
    directory: Path,
    part: Distillation,
    facts: Mapping,
    preprocessor: nn.Module,
    images: Dataset,
    shard_bytes: int,
) -> TeacherCache:
    """Create a cache without shards, after estimating the size of an entry on a few images."""
    numbers = np.linspace(0, len(images) - 1, min(NUM_SAMPLES, len(images))).astype(int)
    samples = pseudo_collate([images[number] for number in numbers])
    sizes = [
        sum(level.nbytes for level in maps)
        for _, _, maps in coordinates(part, preprocessor, samples, facts['path_parts'])
    ]
    entry_bytes = sum(sizes) // len(sizes)
    padding = padding_coordinates(part, preprocessor)
    tensors = [
        LevelTensors(projection.basis, projection.variance_kept, of_padding)
        for projection, of_padding in zip(_projections(part), padding)
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
    return TeacherCache.create(directory, about, tensors)


@torch.no_grad()
def padding_coordinates(part: Distillation, preprocessor: nn.Module) -> list[Tensor]:
    """Return the coordinates (d,) of each level where the teacher sees only padding."""
    shape = (1, part.image_channels, PADDING_SIDE, PADDING_SIDE)
    blank = torch.full(shape, float(preprocessor.pad_value), device=preprocessor.device)
    # An image of size zero, so that the whole input is padding.
    levels = _projected(part, blank, [DetDataSample(metainfo={'img_shape': (0, 0)})])
    return [maps[0, :, maps.shape[2] // 2, maps.shape[3] // 2] for maps in levels]


def check_room(cache: TeacherCache) -> str:
    """Check that the missing shards of a cache fit on the disk, and return a line on its size."""
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
    """Write the missing shards; with several processes, each writes its share.

    ``advance`` is called after each shard with its number of entries.
    """
    rank, world_size = get_dist_info()
    size = cache.about['shard_entries']
    shards = {
        number: range(number * size, min((number + 1) * size, len(images)))
        for number in cache.missing_shards()
        if number % world_size == rank  # not by position: other ranks may already be writing
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
            for key, shape, maps in coordinates(part, preprocessor, batch, cache.path_parts):
                entries[key] = shape, maps
        cache.write_shard(number, entries)
        advance(len(numbers))
