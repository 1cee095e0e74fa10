"""``CachedTeacher``: takes the place of a ``Teacher`` and reads its maps from a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from mmengine.config import Config
from torch import Tensor

from ...errors import ConfigError
from ...features import Level
from ...files.checkpoints import fingerprint
from ...files.configs import UnreadableConfigError
from ...losses import FeatureLoss
from .images import entry_key, image_pipeline
from .origin import check_facts
from .reading import BatchReading
from .store import TeacherCache

# Threads that read a batch; a disk serves a few requests at once.
NUM_THREADS = 4


class CachedTeacher:
    """The teacher's projected maps, as ``tools/cache_teacher.py`` stored them.

    The teacher is neither built nor loaded, and its checkpoint need not exist.

    Args:
        cache (TeacherCache): The cache.
        checkpoint (str, optional): Path or URL of the teacher's weights, if given in the config.
        given_facts (Callable): Returns the facts that the config tells about the teacher, which are
            compared with the cached ones.
        projections (Mapping): From :func:`rdimkd_det.teacher.cache.origin.projection_facts`.

    Raises:
        ConfigError: The cache holds other projections.
    """

    projected = True

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
        return self.cache.entries is not None

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

    def fingerprint(self) -> str | None:
        """Return what identifies the weights in a resumed training, if their file is there."""
        return None if self.checkpoint is None else fingerprint(str(self.checkpoint))

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
        check_facts(self.cache, self._given_facts())
        self.build()

    def provide_bases(self, tap: str, indices: Sequence[int], loss: FeatureLoss) -> None:
        """Give a loss the bases that the cached maps were projected on.

        Args:
            tap (str): Path of the teacher's module.
            indices (Sequence[int]): Indices of its levels, in the order of the loss.
            loss (FeatureLoss): Receives the bases.

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
    def __call__(self, inputs: Tensor, data_samples: Sequence) -> dict[str, dict[int, Tensor]]:
        """Start to read the projected maps of a batch while the student runs; see :meth:`wait`.

        Args:
            inputs (Tensor): Batch (N, 3, H, W); only its device is used.
            data_samples (Sequence[DetDataSample]): Data samples of the images.

        Returns:
            dict[str, dict[int, Tensor]]: Tap to level index to maps (N, d, H, W), float32, sized
            for the largest image; filled once :meth:`wait` returns.
        """
        images = [
            (entry_key(sample.metainfo), tuple(sample.metainfo['img_shape'][:2]))
            for sample in data_samples
        ]
        self._reading = BatchReading(self.cache, images, inputs.device, self._threads)
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


def open_cache(directory: str) -> TeacherCache:
    """Open a cache for a training.

    Raises:
        UnreadableConfigError: There is none.
        ConfigError: It is damaged.
    """
    try:
        return TeacherCache(directory)
    except OSError as error:
        raise UnreadableConfigError(
            f'teacher cache {directory} is not there ({error.strerror}); make it with '
            f'tools/cache_teacher.py CONFIG --out {directory}, or train with the live teacher, '
            f'without cache=...'
        ) from error


def _reading_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(NUM_THREADS, thread_name_prefix='teacher cache')


def _agree(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-5)
