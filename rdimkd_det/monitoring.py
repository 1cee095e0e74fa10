"""What a training shows of itself: the weights in force, and what the student has learned.

The student is guided inside the subspace and free in its complement (RdimKD, arXiv 2312.08700);
the share of the teacher's variance that it explains is told for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from .losses import RdimKDLoss, project_adapted

# Keeps a direction that does not vary at all free of NaN.
TINY = 1e-30


def explained_share(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Share of the teacher's variance that a student explains, direction by direction.

    .. math:: \frac{\sum_k \sigma_{t,k}^2 \max(\rho_k, 0)^2}{\sum_k \sigma_{t,k}^2}

    with the teacher's variance :math:`\sigma_{t,k}^2` over batch and positions along direction
    ``k``, and the correlation :math:`\rho_k` of student and teacher along it. Per direction it is
    the coefficient of determination of the best line through student and teacher, so that, like
    ``normalize='standardize'``, it does not ask for the teacher's mean or scale; a line that falls
    explains nothing.

    Args:
        student (Tensor): Student's coordinates (N, D, L), float32 or float64.
        teacher (Tensor): Teacher's coordinates (N, D, L).

    Returns:
        Tensor: 0-dim, from 0 to 1; the same on every rank: the ranks' batches count as one.

    Example:
        >>> import torch
        >>> from rdimkd_det.monitoring import explained_share
        >>> teacher = torch.randn(2, 3, 20)
        >>> round(explained_share(5 * teacher + 7, teacher).item(), 3)
        1.0
    """
    dims = (0, 2)
    count = student.new_full((student.shape[1],), student.shape[0] * student.shape[2])
    sums = torch.stack([count, student.sum(dims), teacher.sum(dims)])
    all_reduce(sums, 'sum')
    mean_s, mean_t = sums[1:] / sums[0]
    s, t = student - mean_s[:, None], teacher - mean_t[:, None]
    products = torch.stack([(s * s).sum(dims), (t * t).sum(dims), (s * t).sum(dims)])
    all_reduce(products, 'sum')
    var_s, var_t, cov = products
    explained = cov.clamp(min=0).square() / var_s.clamp(min=TINY)
    return explained.sum() / var_t.sum().clamp(min=TINY)


def split(feats: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Split maps into their coordinates in the subspace and what is left in its complement.

    Args:
        feats (Tensor): Maps (N, C, L).
        basis (Tensor): Semi-orthogonal basis ``K`` (C, d).

    Returns:
        tuple[Tensor, Tensor]: ``K^T F`` (N, d, L), and ``(I - K K^T) F`` (N, C, L).
    """
    inside = basis.t() @ feats
    return inside, feats - basis @ inside


@torch.no_grad()
def explained_shares(
    loss: RdimKDLoss, student_feats: Sequence[Tensor], teacher_feats: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Share of the teacher's variance that the student explains, inside and outside, per level.

    The complement has no directions of its own: there, the channels of what is left are compared.

    Args:
        loss (RdimKDLoss): The loss of these maps, its projections fitted.
        student_feats (Sequence[Tensor]): Student's maps (N, C_s, H, W), one per level.
        teacher_feats (Sequence[Tensor]): Teacher's maps (N, C_t, H, W).

    Returns:
        dict[str, Tensor]: 'explained_in_<level name>' and, unless the subspace is everything or
        the teacher comes from a cache, 'explained_out_<level name>': 0-dim each.
    """
    shares = {}
    with torch.autocast(student_feats[0].device.type, enabled=False):
        for level, name in enumerate(loss.level_names):
            maps = student_feats[level], teacher_feats[level]
            basis = loss.projections[level].basis
            if loss.teacher_projected:  # from a cache, which holds nothing of the complement
                student, teacher = _comparable(loss, *maps)
                student = project_adapted(student, loss.adapters[level], basis.to(student))
                shares[f'explained_in_{name}'] = explained_share(student, teacher.flatten(2))
                continue
            student, teacher = (
                split(it.flatten(2), basis.to(it)) for it in adapted_maps(loss, level, *maps)
            )
            shares[f'explained_in_{name}'] = explained_share(student[0], teacher[0])
            if basis.shape[1] < basis.shape[0]:
                shares[f'explained_out_{name}'] = explained_share(student[1], teacher[1])
    return shares


def adapted_maps(
    loss: RdimKDLoss, level: int, student: Tensor, teacher: Tensor
) -> tuple[Tensor, Tensor]:
    """Two maps as the loss compares them, before the projection.

    Args:
        loss (RdimKDLoss): The loss.
        level (int): Their level.
        student (Tensor): Student's map (N, C_s, H, W).
        teacher (Tensor): Teacher's map (N, C_t, H, W).

    Returns:
        tuple[Tensor, Tensor]: Both (N, C_t, H, W), of one size, in float32 or float64.
    """
    student, teacher = _comparable(loss, student, teacher)
    identity = torch.eye(teacher.shape[1], device=teacher.device, dtype=teacher.dtype)
    adapted = project_adapted(student, loss.adapters[level], identity)
    return adapted.unflatten(2, teacher.shape[2:]), teacher


def _comparable(loss: RdimKDLoss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of one size, in float32 or float64."""
    precision = torch.promote_types(student.dtype, torch.float32)
    return tuple(maps.to(precision) for maps in loss.same_size(student, teacher))


class Monitor:
    """Notes what the student explains, at one iteration."""

    def __init__(self) -> None:
        self.shares: dict[str, Tensor] = {}

    def __call__(
        self, loss: RdimKDLoss, student_feats: Sequence[Tensor], teacher_feats: Sequence[Tensor]
    ) -> None:
        """See :func:`explained_shares`; ``Distillation`` calls it for each tap."""
        self.shares.update(explained_shares(loss, student_feats, teacher_feats))

    def scalars(self) -> dict[str, float]:
        """What has been noted, by name."""
        return {name: float(share) for name, share in self.shares.items()}


def weights_in_force(loss: RdimKDLoss) -> dict[str, float]:
    """The factors on a loss's levels: its weights, times the schedule's factor and 'auto'.

    Args:
        loss (RdimKDLoss): The loss of a tap.

    Returns:
        dict[str, float]: 'rdimkd_weight_<tap>', or one entry per level if they differ; empty while
        'auto' is not set.
    """
    if loss.needs_auto_weight:
        return {}
    common = loss.factor * float(loss.auto_weight)
    weights = {
        f'rdimkd_weight_{name}': weight * common
        for name, weight in zip(loss.level_names, loss.level_weights)
    }
    if len(set(weights.values())) > 1:
        return weights
    first, weight = next(iter(weights.items()))
    return {first.rpartition('_s')[0] or first: weight}
