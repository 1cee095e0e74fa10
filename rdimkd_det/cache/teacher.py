"""``CachedTeacher``: takes the place of a ``Teacher`` and reads its maps from a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..errors import ConfigError
from ..features import Level
from ..files.configs import UnreadableConfigError, read_detector_config
from ..losses import RdimKDLoss
from .facts import check_facts, checkpoint_facts, model_facts
from .images import entry_key, image_pipeline
from .reading import BatchReading
from .store import TeacherCache

# Threads that read a batch; a disk serves a few requests at once.
NUM_THREADS = 4


class CachedTeacher:
    """The teacher's projected maps, as ``tools/cache_teacher.py`` stored them.

    The teacher is neither built nor loaded, and its checkpoint need not exist.

    Args:
        directory (str): Directory of the cache.
        config (str | dict, optional): The teacher's config, compared with the cached one.
        checkpoint (str, optional): Path or URL of the teacher's weights, compared by hash if the
            file exists, otherwise by name.
        projections (Mapping): From :func:`rdimkd_det.cache.facts.projection_facts`.

    Raises:
        UnreadableConfigError: There is no cache.
        ConfigError: The cache is damaged, or holds other projections.
    """

    projected = True

    def __init__(
        self,
        directory: str,
        config: str | dict | None,
        checkpoint: str | None,
        projections: Mapping,
    ) -> None:
        try:
            self.cache = TeacherCache(directory)
        except OSError as error:
            raise UnreadableConfigError(
                f'teacher cache {directory} is not there ({error.strerror}); make it with '
                f'tools/cache_teacher.py CONFIG --out {directory}, or train with the live teacher, '
                f'without cache=...'
            ) from error
        self.config = config
        self.given_checkpoint = checkpoint
        self.checkpoint = str(checkpoint or self.cache.about['facts']['checkpoint'])
        check_facts(self.cache, projections)
        self._threads = _reading_threads()
        self._reading: BatchReading | None = None

    def __deepcopy__(self, memo: dict) -> CachedTeacher:
        return self

    def __getstate__(self) -> dict:
        return {
            key: value for key, value in vars(self).items() if key not in ('_threads', '_reading')
        }

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _threads=_reading_threads(), _reading=None)

    @property
    def built(self) -> bool:
        """bool: Whether the cache's index is in memory."""
        return self.cache.index_loaded

    @property
    def num_bytes(self) -> int:
        """int: Memory of the teacher's weights in bytes: 0, as none are loaded."""
        return 0

    def build(self) -> None:
        """Load the cache's index, unless it is loaded already.

        Raises:
            ConfigError: Shards are missing.
        """
        self.cache.load_index()

    def release(self) -> None:
        """Free the index; the next call loads it again."""
        self.cache.unload_index()

    def probe(self) -> dict[str, list[Level]]:
        """Return the strides and channels at the taps, as recorded in the cache."""
        return {
            tap: [Level(*level) for level in levels]
            for tap, levels in self.cache.about['taps'].items()
        }

    def build_bridge(self, preprocessor: nn.Module) -> KeyBridge:
        """Build what turns a batch of the student into the input of this teacher."""
        return KeyBridge(self.cache)

    def check(self, cfg: Config) -> None:
        """Check a config; the same as :meth:`prepare`."""
        self.prepare(cfg)

    def prepare(self, cfg: Config) -> None:
        """Check that the cache fits this training run, and load its index.

        Args:
            cfg (Config): Config of the run.

        Raises:
            ConfigError: The teacher or the images differ from the cached ones (the message names
                the first difference), or shards are missing.
        """
        check_facts(self.cache, image_pipeline(cfg))
        if self.config is not None:
            check_facts(self.cache, model_facts(read_detector_config(self.config)))
        if self.given_checkpoint is not None:
            check_facts(self.cache, checkpoint_facts(self.checkpoint))
        self.build()

    def provide_bases(self, tap: str, indices: Sequence[int], loss: RdimKDLoss) -> None:
        """Give a loss the bases that the cached maps were projected on.

        Args:
            tap (str): Path of the teacher's module.
            indices (Sequence[int]): Indices of its levels, in the order of the loss.
            loss (RdimKDLoss): Receives the bases.

        Raises:
            ConfigError: A level is not in the cache, or already has another basis.
        """
        loss.teacher_projected = True
        for index, name, projection in zip(indices, loss.level_names, loss.projections):
            if [tap, index] not in self.cache.about['levels']:
                raise ConfigError(
                    f'teacher cache {self.cache.directory} has no maps for {name}; make a cache '
                    f'for this config.'
                )
            arrays = self.cache.arrays[self.cache.about['levels'].index([tap, index])]
            basis = torch.from_numpy(arrays.basis).to(projection.basis.device)
            if projection.fitted and not _agree(projection.basis, basis):
                raise ConfigError(
                    f'teacher cache {self.cache.directory}: {name} already has another basis, '
                    f'from a checkpoint of a training without this cache; resume that training '
                    f'with its own config, or start a new one.'
                )
            kept = torch.from_numpy(arrays.variance_kept)
            projection.load_state_dict({'basis': basis, 'variance_kept': kept})

    @torch.compiler.disable
    @torch.no_grad()
    def __call__(self, batch: CachedBatch) -> dict[str, dict[int, Tensor]]:
        """Start to read the projected maps of a batch while the student runs; see :meth:`wait`.

        Args:
            batch (CachedBatch): Keys of the images.

        Returns:
            dict[str, dict[int, Tensor]]: Tap to level index to maps (N, d, H, W), float32, sized
            for the largest image; filled once :meth:`wait` returns.
        """
        self._reading = BatchReading(self.cache, batch.images, batch.device, self._threads)
        outputs: dict[str, dict[int, Tensor]] = {}
        for (tap, index), maps in zip(self.cache.about['levels'], self._reading.levels):
            outputs.setdefault(tap, {})[index] = maps
        return outputs

    @torch.compiler.disable
    def wait(self, outputs: Mapping) -> None:
        """Wait until the maps of the last call have been read.

        Args:
            outputs (Mapping): Maps from that call; not used.
        """
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.finish()


class CachedBatch(NamedTuple):
    """The input of a cached teacher: the images of a batch, by key.

    Attributes:
        images (list[tuple[str, tuple[int, int]]]): Key and (H, W) of each image.
        device (torch.device): Device of the maps.
    """

    images: list[tuple[str, tuple[int, int]]]
    device: torch.device


class KeyBridge:
    """Takes the place of an ``InputBridge``: turns a batch of the student into image keys.

    Args:
        cache (TeacherCache): The cache, shown by ``repr``.
    """

    def __init__(self, cache: TeacherCache) -> None:
        self.cache = cache

    def __deepcopy__(self, memo: dict) -> KeyBridge:
        return self

    def __call__(self, inputs: Tensor, data_samples: Sequence) -> CachedBatch:
        """Return the keys and sizes of the images of a batch.

        Args:
            inputs (Tensor): Batch (N, 3, H, W); only its device is used.
            data_samples (Sequence[DetDataSample]): Data samples of the images.
        """
        images = [
            (entry_key(sample.metainfo), tuple(sample.metainfo['img_shape'][:2]))
            for sample in data_samples
        ]
        return CachedBatch(images, inputs.device)

    def __repr__(self) -> str:
        return f'cache {self.cache.directory}, {self.cache.about["num_entries"]} entries'


def _reading_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(NUM_THREADS, thread_name_prefix='teacher cache')


def _agree(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-5)
