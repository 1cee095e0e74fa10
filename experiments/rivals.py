"""Losses of other feature distillations, to compare with; maps must have equal shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class L2(nn.Module):
    """Mean squared difference over all channels.

    Args:
        channels (Sequence[int]): Number of channels C at each level.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(self.adapter(number) for number in channels)

    def adapter(self, channels: int) -> nn.Module:
        return nn.Identity()

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        adapted = (adapter(maps) for adapter, maps in zip(self.adapters, student))
        return sum(self.distance(s, t) for s, t in zip(adapted, teacher))

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(student.float(), teacher.float())


class L2WithAdapter(L2):
    """``L2`` after a learned 1x1 convolution of the student's map."""

    def adapter(self, channels: int) -> nn.Module:
        return nn.Conv2d(channels, channels, 1)


class PKD(L2):
    """PKD (arXiv 2207.02039): half the squared difference of standardised channels."""

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(_standardize(student.float()), _standardize(teacher.float())) / 2


class MGD(L2):
    """MGD (arXiv 2205.01529): generates the teacher's map from the student's masked map."""

    masked = 0.65

    def adapter(self, channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        return super().forward([self.mask(maps) for maps in student], teacher)

    def mask(self, maps: Tensor) -> Tensor:
        return maps * (torch.rand_like(maps[:, :1]) > self.masked)


def _standardize(feats: Tensor) -> Tensor:
    positions = feats.transpose(0, 1).flatten(1)  # (C, N * H * W)
    mean, deviation = positions.mean(1, keepdim=True), positions.std(1, keepdim=True)
    return (positions - mean) / (deviation + 1e-6)
