"""``CachedTeacher``: takes the place of a ``Teacher`` and reads its maps from a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor

from ...errors import ConfigError
from ...features import Level
from ...files.configs import UnreadableConfigError
from ...losses import FeatureLoss
from ..source import identity
from .images import entry_key, image_pipeline
from .origin import check_facts
from .reading import start_reading
from .store import TeacherCache

# Threads that read a batch; a disk serves a few requests at once.
NUM_THREADS = 4


class CachedTeacher:
    """The teacher's projected maps, as ``tools/cache_teacher.py`` stored them.

    The teacher is neither built nor loaded, and its checkpoint need not exist. The facts that the
    config tells about it must be the cached ones.
    """

    projected = True
    num_bytes = 0  # of weights
    _finish: Callable[[], None] | None = None

    def __init__(
        self,
        cache: TeacherCache,
        checkpoint: str | None,
        given_facts: Callable[[], dict],
        projections: Mapping,
    ) -> None:
        self.cache = cache
        self.checkpoint = checkpoint or cache.about['facts']['checkpoint']
        self._given_facts = given_facts
        check_facts(cache, projections)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(NUM_THREADS, thread_name_prefix='teacher cache')

    def __deepcopy__(self, memo: dict) -> CachedTeacher:
        return self

    def __getstate__(self) -> dict:
        return {key: v for key, v in vars(self).items() if key not in ('_threads', '_finish')}

    @property
    def built(self) -> bool:
        """bool: Whether the cache's index is in memory."""
        return self.cache.entries is not None

    def build(self) -> None:
        """Load the cache's index, unless it is loaded already."""
        self.cache.load_index()

    def release(self) -> None:
        """Free the index; the next call loads it again."""
        self.cache.entries = None

    def probe(self) -> dict[str, list[Level]]:
        """Return the strides and channels at the taps, as recorded in the cache."""
        return {
            tap: [Level(*level) for level in levels]
            for tap, levels in self.cache.about['taps'].items()
        }

    def describe(self) -> str:
        """Return what the teacher is, and where its maps come from."""
        about = self.cache.about
        name = self.checkpoint or about['facts']['module of the teacher']['type']
        return f'{name}, its maps from cache {self.cache.directory}, {about["num_entries"]} entries'

    def identity(self) -> dict:
        """Return what identifies the teacher in a resumed training, in JSON types."""
        return identity(self.cache.about['facts'])

    def prepare(self, cfg: Config) -> None:
        """Check that the cache fits this training run, and load its index."""
        check_facts(self.cache, image_pipeline(cfg))
        check_facts(self.cache, self._given_facts())
        self.build()

    check = prepare

    def provide_bases(self, tap: str, indices: Sequence[int], loss: FeatureLoss) -> None:
        """Give a loss the bases that the cached maps of a tap's levels were projected on."""
        first, loss.teacher_projected = not loss.teacher_projected, True
        for index, name, projection in zip(indices, loss.level_names, loss.projections):
            if [tap, index] not in self.cache.about['levels']:
                raise ConfigError(
                    f'teacher cache {self.cache.directory} has no maps for {name}; make a cache '
                    f'for this config.'
                )
            tensors = self.cache.tensors[self.cache.about['levels'].index([tap, index])]
            known = projection.fitted and not first  # at first a random one has a draw of its own
            if known and not _agree(projection.basis.cpu(), tensors.basis):
                raise ConfigError(
                    f'teacher cache {self.cache.directory}: {name} already has another basis, '
                    f'from a checkpoint of a training without this cache; resume that training '
                    f'with its own config, or start a new one.'
                )
            tensors.load_into(projection)

    @torch.compiler.disable
    @torch.no_grad()
    def __call__(self, inputs: Tensor, data_samples: Sequence) -> dict[str, dict[int, Tensor]]:
        """Start to read the projected maps of a batch while the student runs.

        The maps (N, d, H, W), by tap and index of the level, are filled once :meth:`wait` returns.
        """
        images = [
            (
                entry_key(sample.metainfo, self.cache.path_parts),
                tuple(sample.metainfo['img_shape'][:2]),
            )
            for sample in data_samples
        ]
        levels, self._finish = start_reading(self.cache, images, inputs.device, self._threads)
        outputs: dict[str, dict[int, Tensor]] = {}
        for (tap, index), maps in zip(self.cache.about['levels'], levels):
            outputs.setdefault(tap, {})[index] = maps
        return outputs

    @torch.compiler.disable
    def wait(self, outputs: Mapping) -> None:
        """Wait until the maps of the last call have been read."""
        finish, self._finish = self._finish, None
        if finish is not None:
            finish()


def open_cache(directory: str) -> TeacherCache:
    """Open a cache for a training; an ``UnreadableConfigError`` says that there is none."""
    try:
        return TeacherCache(directory)
    except OSError as error:
        found = 'holds no cache' if Path(directory).is_dir() else 'is not there'
        raise UnreadableConfigError(
            f'teacher cache {directory} {found} ({error.strerror}); make it with '
            f'tools/cache_teacher.py CONFIG --out {directory}, or train with the live teacher, '
            f'without cache=...'
        ) from error


def _agree(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-5)
