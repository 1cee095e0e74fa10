"""``LabelledEpochs``: gives the endless stream of a ``MultiSourceSampler`` epochs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from mmdet.registry import DATA_SAMPLERS
from mmengine.dist import get_world_size
from torch.utils.data import Sampler

from ..errors import ConfigError
from ..host.registry import register


@register(DATA_SAMPLERS)
class LabelledEpochs:
    """Batches of a ``MultiSourceSampler``; an epoch is one pass over its first, labelled source.

    The sampler itself never ends an epoch, so alone it suits an ``IterBasedTrainLoop`` only. With
    this batch sampler, a plain training's epochs, learning rates and hooks stay as they are. An
    epoch's batches depend on its number alone, so that a resumed training finds its own.

    Args:
        sampler (Sampler): MMDetection's ``MultiSourceSampler``.
        batch_size (int): Images in a batch, of all sources together.
    """

    def __init__(self, sampler: Sampler, batch_size: int) -> None:
        per_source = getattr(sampler, 'num_per_source', None)
        if per_source is None or sum(per_source) != batch_size or not per_source[0]:
            raise ConfigError(
                f'LabelledEpochs needs sampler=dict(type="MultiSourceSampler", '
                f'batch_size={batch_size}, source_ratio=[...]) with at least one image of the '
                f'first source in a batch; got a {type(sampler).__name__}, images per source '
                f'{per_source}.'
            )
        self.batch_size = batch_size
        self.num_per_source = per_source
        self._num_images = len(sampler.dataset.datasets[0])
        self._indices = iter(sampler)
        self._position = 0  # number of batches drawn
        self._epoch = 0

    @property
    def sampler(self) -> LabelledEpochs:
        """LabelledEpochs: Itself, for ``DistSamplerSeedHook``, which sets its sampler's epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._num_images // (self.num_per_source[0] * get_world_size()))

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self._epoch * len(self) - self._position):
            self._next_batch()
        for _ in range(len(self)):
            yield self._next_batch()

    def _next_batch(self) -> list[int]:
        self._position += 1
        return list(islice(self._indices, self.batch_size))
