"""``CachedTeacher``: replaces a ``Teacher``, and reads its maps from a cache."""

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

# That read a batch; a disk serves a few requests at once.
NUM_THREADS = 4


class CachedTeacher:
    """The teacher's maps in the subspace, as ``tools/cache_teacher.py`` stored them.

    Nothing of the teacher is built or loaded, and its files need not be there.

    Args:
        directory (str): The cache.
        config (str | dict, optional): The teacher's config, compared with the cached one's.
        checkpoint (str, optional): Its weights, compared by their hash if the file is there, else
            by their name.
        projections (Mapping): Of the losses, from :func:`rdimkd_det.cache.facts.projection_facts`.

    Raises:
        UnreadableConfigError: There is no cache.
        ConfigError: It is damaged, or holds other projections.
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
        """int: Memory that weights take: there are none."""
        return 0

    def build(self) -> None:
        """Load the cache's index, unless that has been done.

        Raises:
            ConfigError: Shards are missing.
        """
        self.cache.load_index()

    def release(self) -> None:
        """Free the index; the next call loads it again."""
        self.cache.unload_index()

    def probe(self) -> dict[str, list[Level]]:
        """Strides and channels at the taps, as they were when the cache was made."""
        return {
            tap: [Level(*level) for level in levels]
            for tap, levels in self.cache.about['taps'].items()
        }

    def build_bridge(self, preprocessor: nn.Module) -> KeyBridge:
        """What turns a batch of the student into what this teacher takes."""
        return KeyBridge(self.cache)

    def check(self, cfg: Config) -> None:
        """As :meth:`prepare`."""
        self.prepare(cfg)

    def prepare(self, cfg: Config) -> None:
        """Check that the cache is of this training, and load its index.

        Args:
            cfg (Config): Config of the training.

        Raises:
            ConfigError: Its teacher or images are others than the cached ones; names the first
                difference. Or shards are missing.
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
            indices (Sequence[int]): Its levels, in the order of the loss.
            loss (RdimKDLoss): Gets them, unless it has them.

        Raises:
            ConfigError: A level is not in the cache, or has another basis already.
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
                    f'teacher cache {self.cache.directory}: {name} has another basis already, '
                    f'from a checkpoint of a training without this cache; resume that as it was, '
                    f'or start anew.'
                )
            kept = torch.from_numpy(arrays.variance_kept)
            projection.load_state_dict({'basis': basis, 'variance_kept': kept})

    @torch.compiler.disable
    @torch.no_grad()
    def __call__(self, batch: CachedBatch) -> dict[str, dict[int, Tensor]]:
        """Coordinates of a batch in the subspace, read beside the student; see :meth:`wait`.

        Args:
            batch (CachedBatch): Names of the images.

        Returns:
            dict[str, dict[int, Tensor]]: Tap to the index of a level to (N, d, H, W), float32, as
            large as the largest image's; they are there after :meth:`wait`.
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
            outputs (Mapping): Maps from that call, by any name.
        """
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.finish()


class CachedBatch(NamedTuple):
    """What a cached teacher takes of a batch.

    Attributes:
        images (list[tuple[str, tuple[int, int]]]): Key and (H, W) of each image.
        device (torch.device): Where its maps are wanted.
    """

    images: list[tuple[str, tuple[int, int]]]
    device: torch.device


class KeyBridge:
    """In the place of an ``InputBridge``: from a batch of the student to the names of its images.

    Args:
        cache (TeacherCache): The cache, for its name.
    """

    def __init__(self, cache: TeacherCache) -> None:
        self.cache = cache

    def __deepcopy__(self, memo: dict) -> KeyBridge:
        return self

    def __call__(self, inputs: Tensor, data_samples: Sequence) -> CachedBatch:
        """Name the images of a batch.

        Args:
            inputs (Tensor): Batch (N, 3, H, W).
            data_samples (Sequence[DetDataSample]): Theirs.
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
