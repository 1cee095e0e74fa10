"""Losses for comparison only."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor

from rdimkd_det import FeatureLoss, RdimKDLoss


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
