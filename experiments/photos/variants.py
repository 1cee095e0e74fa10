"""Losses and projections for comparison only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from torch import Tensor

from rdimkd_det import FeatureLoss, PCAProjection, RdimKDLoss
from rdimkd_det.errors import ConfigError
from rdimkd_det.files.checkpoints import load_checkpoint_safely
from rdimkd_det.functional import standardized_losses


@MODELS.register_module()
class CosineLoss(FeatureLoss):
    """One minus the cosine of the two maps' channels at each position, as RT-DETRv4 has it."""

    name = 'cosine'

    def distance(self, level: int, student: Tensor, teacher: Tensor) -> Tensor:
        """See :meth:`FeatureLoss.distance`."""
        return 1 - torch.cosine_similarity(student, teacher).mean()


@MODELS.register_module()
class FollowingLoss(RdimKDLoss):
    """``RdimKDLoss`` whose weight 'auto' slowly follows the balance during training.

    Args:
        interval (int): Iterations from one measurement to the next. Defaults to 25.
        rate (float): Share of the way to the measured weight, in logarithms. Defaults to 0.3.
        **options: Options of :class:`RdimKDLoss`.
    """

    def __init__(self, interval: int = 25, rate: float = 0.3, **options) -> None:
        super().__init__(**options)
        self.interval = interval
        self.rate = rate
        self.step = 0

    def distances(self, *maps: object, **options) -> dict:
        """See :meth:`FeatureLoss.distances`."""
        self.step += self.training
        return super().distances(*maps, **options)

    @property
    def measures_balance(self) -> bool:
        """bool: Whether the next batch is measured."""
        return super().measures_balance or self.step % self.interval == 0

    def note_balance(self, balance: Tensor) -> None:
        """See :meth:`FeatureLoss.note_balance`."""
        if super().measures_balance:
            super().note_balance(balance)
        elif balance.isfinite():
            change = (self.auto_share * balance / self.auto_weight) ** self.rate
            self.auto_weight.mul_(change.clamp(0.5, 2.0))


@MODELS.register_module()
class WithPaddingLoss(RdimKDLoss):
    """``RdimKDLoss`` that also compares the padding of a batch; K is fitted without it."""

    leaves_padding_out = False


@MODELS.register_module()
class ImageStatisticsLoss(RdimKDLoss):
    """``RdimKDLoss`` that standardises each image by itself, its padding included."""

    leaves_padding_out = False

    def level_distances(
        self, levels: Sequence[int], maps: Sequence[tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        """See :meth:`FeatureLoss.level_distances`."""
        pairs = (self._coordinates(level, *maps[level], None) for level in levels)
        return standardized_losses([[it.flatten(0, 1)[None] for it in pair] for pair in pairs])


@MODELS.register_module()
class IsotropicProjection(PCAProjection):
    """Principal directions, rotated so that all have the same variance: PHI-S (2410.01680).

    They span the subspace of ``PCAProjection``, whose ``dim`` must be a power of 2. Standardising
    them one by one does not whiten the subspace: all are divided by the same number.
    """

    def learn_basis(self, covariance: Tensor) -> Tensor:
        """See :meth:`Projection.learn_basis`."""
        basis = super().learn_basis(covariance)
        rotation = basis.new_ones(1, 1)  # Hadamard's matrix, by Sylvester's construction
        while len(rotation) < basis.shape[1]:
            rotation = torch.kron(rotation, rotation.new_tensor([[1, 1], [1, -1]]))
        if len(rotation) != basis.shape[1]:
            raise ConfigError(f'IsotropicProjection: d = {basis.shape[1]} is no power of 2.')
        return basis @ rotation / len(rotation) ** 0.5


@MODELS.register_module()
class HeadProjection(PCAProjection):
    """Principal directions of what the head of a YOLOX with depthwise convolutions reads.

    With A the product of the first convolutions' weights, summed over branches and positions of
    the kernel, and S the covariance, they are the leading eigenvectors q of A^(1/2) S A^(1/2),
    taken back to the maps as A^(1/2) q and orthonormalised.

    Args:
        dim (int): Number of directions d.
        num_channels (int): Channels C of the teacher's feature map.
        level (int): Index of the level, which has convolutions of its own.
        checkpoint (str): Checkpoint of the teacher.
    """

    def __init__(self, dim: int, num_channels: int, level: int, checkpoint: str) -> None:
        super().__init__(dim, num_channels)
        state = load_checkpoint_safely(checkpoint, 'HeadProjection')
        reads = 0
        for branch in ('cls', 'reg'):
            first = f'bbox_head.multi_level_{branch}_convs.{level}.0'
            kernels = state[f'{first}.depthwise_conv.conv.weight'].double().flatten(1)
            norm = f'{first}.depthwise_conv.bn'
            variance = state[f'{norm}.running_var'].double() + 1e-3
            kernels *= (state[f'{norm}.weight'] * variance.rsqrt())[:, None]
            mixing = state[f'{first}.pointwise_conv.conv.weight'].double().flatten(1)
            reads = reads + (kernels @ kernels.t()) * (mixing.t() @ mixing)
        values, vectors = torch.linalg.eigh(reads)
        self.root = vectors @ (values.clamp(min=0).sqrt()[:, None] * vectors.t())

    def learn_basis(self, covariance: Tensor) -> Tensor:
        """See :meth:`Projection.learn_basis`."""
        read = super().learn_basis(self.root @ covariance.cpu() @ self.root)
        return torch.linalg.qr(self.root @ read).Q
