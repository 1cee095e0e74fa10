"""Means, variances and covariance of student and teacher per direction, merged over the ranks.

The moments of ranks, or of pieces of a map, are merged by the rule of Chan, Golub and LeVeque
(1983), which keeps its precision when means are large.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.dist import all_gather
from torch import Tensor


def centred(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Subtract each direction's mean, as a constant without gradient, from coordinates (N, D, L).

    Also returns the centers (2, D).
    """
    teacher = teacher.detach()
    centers = torch.stack([student.detach().mean((0, 2)), teacher.mean((0, 2))])
    return student - centers[0][:, None], teacher - centers[1][:, None], centers


def moments(student: Tensor, teacher: Tensor, centers: Tensor) -> Tensor:
    """Compute the moments of coordinates that :func:`centred` returns; exact for any centers.

    They are (6, D), without gradient: the number of positions, the means of student and teacher,
    the sums of their squared deviations, and the sum of the product of their deviations.
    """
    student = student.detach()
    count = student.shape[0] * student.shape[2]
    mean_s, mean_t = means = torch.stack([student.mean((0, 2)), teacher.mean((0, 2))])
    squares = [products(student, student), products(teacher, teacher), products(student, teacher)]
    about_means = torch.stack([mean_s.square(), mean_t.square(), mean_s * mean_t])
    squares = torch.stack(squares).sub_(about_means, alpha=count)
    return torch.cat([means.new_full((1, len(mean_s)), count), centers + means, squares])


def products(first: Tensor, second: Tensor) -> Tensor:
    """Sum the product of two sets of coordinates over batch and positions: (D,)."""
    return torch.einsum('ndl,ndl->nd', first, second).sum(0)


def merge(parts: Tensor) -> Tensor:
    """Merge the moments of several parts (P, 6, D) into those of the whole (6, D)."""
    counts, means = parts[:, :1], parts[:, 1:3]
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    s, t = (means - mean).unbind(1)
    between = counts * torch.stack([s * s, t * t, s * t], 1)
    return torch.cat([count, mean, (parts[:, 3:] + between).sum(0)])


def merge_ranks(levels: Sequence[Tensor]) -> list[Tensor]:
    """Merge the moments of all levels over the ranks, with one exchange between the ranks.

    Returns (6, D) of each level, with the biased variances and the covariance in place of the sums.
    """
    merged = merge(torch.stack(all_gather(torch.cat(list(levels), 1))))
    count, means, squares = merged[:1], merged[1:3], merged[3:] / merged[0]
    squares[:2].clamp_(min=0)
    statistics = torch.cat([count, means, squares])
    return list(statistics.split([level.shape[1] for level in levels], 1))
