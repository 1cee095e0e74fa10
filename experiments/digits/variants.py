"""Losses and projections for comparison only."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor

from rdimkd_det import functional
from rdimkd_det.losses import RdimKDLoss
from rdimkd_det.projections import Projection, RandomProjection


@MODELS.register_module()
class RedrawnProjection(RandomProjection):
    """RdimKD-R with a new basis at each training step; in expectation, this is plain L2.

    The draws depend on the seed and the number of steps only, so a resumed run continues unchanged.

    Args:
        dim (int): Number of directions d, 1 to C.
        num_channels (int): Channels C of the teacher's feature map.
        level (int): Index of the FPN level; each level draws its own bases. Defaults to 0.
        seed (int): Seed of the draws. Defaults to 0.
    """

    def __init__(self, dim: int, num_channels: int, level: int = 0, seed: int = 0) -> None:
        super().__init__(dim, num_channels, level, seed)
        self.level = level
        self.seed = seed
        self.register_buffer('step', torch.tensor(0))

    def redraw(self) -> None:
        """Draw the basis of the next step."""
        self.step += 1
        dim, seed = self.basis.shape[1], 1_000_003 * self.seed + int(self.step)
        self.set_basis(RandomProjection(dim, self.num_channels, self.level, seed).basis)


@MODELS.register_module()
class RedrawingLoss(RdimKDLoss):
    """``RdimKDLoss`` that redraws its projections before each training step."""

    def distances(self, *maps: object, **options) -> dict:
        """See :meth:`FeatureLoss.distances`."""
        if self.training:
            for projection in self.projections:
                projection.redraw()
        return super().distances(*maps, **options)


@MODELS.register_module()
class SeveralRandomProjections(Projection):
    """RdimKD-R with several bases side by side: the loss is the mean of their losses.

    Args:
        dim (int): Number of directions d of each basis, 1 to C.
        num_channels (int): Channels C of the teacher's feature map.
        level (int): Index of the FPN level; each level draws its own bases. Defaults to 0.
        num_bases (int): Number of bases. Defaults to 3.
    """

    def __init__(self, dim: int, num_channels: int, level: int = 0, num_bases: int = 3) -> None:
        super().__init__(num_channels)
        bases = [
            RandomProjection(dim, num_channels, level, seed).basis for seed in range(num_bases)
        ]
        self.basis = torch.cat(bases, dim=1)  # no `set_basis`: together they are not orthonormal


@MODELS.register_module()
class PartlyWhitenedLoss(RdimKDLoss):
    """Standardised RdimKD that weights each direction by a power of the teacher's variance there.

    Power 0 weights all directions equally, which is ``normalize='standardize'``; power 1 weights
    each by its variance. Statistics are those of this process's batch.

    Args:
        power (float): The power. Defaults to 0.5.
        **options: Options of :class:`RdimKDLoss`.
    """

    leaves_padding_out = False

    def __init__(self, power: float = 0.5, **options) -> None:
        super().__init__(**options)
        self.power = power

    @property
    def same_on_ranks(self) -> bool:
        """bool: False: the statistics are those of one process's batch."""
        return False

    def level_distances(self, levels: list[int], maps: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """See :meth:`FeatureLoss.level_distances`."""
        return [self._weighed(*self._coordinates(level, *maps[level], None)) for level in levels]

    def _weighed(self, s: Tensor, t: Tensor) -> Tensor:
        variance = t.var((0, 2), correction=0)
        eps = functional.RELATIVE_EPS * variance.mean() + functional.ABSOLUTE_EPS
        difference = _standardised(s, eps) - _standardised(t, eps)
        weights = (variance + eps).pow(self.power)
        return (difference.square().mean((0, 2)) * weights / weights.mean()).mean()


def _standardised(coordinates: Tensor, eps: Tensor) -> Tensor:
    variance, mean = torch.var_mean(coordinates, (0, 2), correction=0, keepdim=True)
    return (coordinates - mean) * (variance + eps).rsqrt()
