"""What a training logs: the weights in force, and what the student explains of the teacher.

The student is guided inside the subspace and free in its complement (RdimKD, arXiv 2312.08700);
the share of the teacher's variance that it explains is told for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .adapters import folded, project_adapted
from .functional import project, working_dtype
from .losses import RdimKDLoss
from .moments import centred, merge, merge_ranks, moments

# Keeps a direction that does not vary at all free of NaN.
TINY = 1e-30
# The largest level is looked at in so many pieces, others in fewer: the coordinates of one piece
# take a fraction of the memory of the maps.
NUM_PIECES = 16


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
    (statistics,) = merge_ranks([moments(*centred(student, teacher))])
    return _share(statistics)


def _share(statistics: Tensor) -> Tensor:
    _, _, _, var_s, var_t, covariance = statistics
    explained = covariance.clamp(min=0).square() / var_s.clamp(min=TINY)
    return explained.sum() / var_t.sum().clamp(min=TINY)


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
    length = -(-max(maps[0, 0].numel() for maps in student_feats) // NUM_PIECES)
    levels = enumerate(zip(student_feats, teacher_feats))
    with torch.autocast(student_feats[0].device.type, enabled=False):
        statistics = merge_ranks([_moments(loss, level, *maps, length) for level, maps in levels])
    shares = {}
    for name, projection, of_level in zip(loss.level_names, loss.projections, statistics):
        inside = of_level[:, : projection.basis.shape[1]]
        outside = of_level[:, projection.basis.shape[1] :]
        shares[f'explained_in_{name}'] = _share(inside)
        if outside.shape[1]:
            shares[f'explained_out_{name}'] = _share(outside)
    return shares


def _moments(loss: RdimKDLoss, level: int, student: Tensor, teacher: Tensor, length: int) -> Tensor:
    """Moments (6, d), or with the complement (6, d + C_t), of a level on this rank.

    No map of full size is made: the level is projected piece by piece, of ``length`` positions.
    """
    student, teacher = loss.same_size(student, teacher)
    basis = loss.projections[level].basis.to(working_dtype(student))
    if loss.teacher_projected:  # by a cache, which holds nothing of the complement
        directions, of_teacher = basis, torch.eye(teacher.shape[1]).to(basis)
    else:
        directions = of_teacher = with_complement(basis)
    of_student = folded(loss.adapters[level], directions)
    pieces = zip(*(maps.flatten(2).split(length, 2) for maps in (student, teacher)))
    coordinates = ((project(s, of_student), project(t, of_teacher)) for s, t in pieces)
    return merge(torch.stack([moments(*centred(*pair)) for pair in coordinates]))


def with_complement(basis: Tensor) -> Tensor:
    """Directions of the subspace, and the channels of what is left in its complement.

    Args:
        basis (Tensor): Semi-orthogonal basis ``K`` (C, d).

    Returns:
        Tensor: ``K`` and ``I - K K^T`` side by side, (C, d + C); ``K`` if it is everything.
    """
    num_channels, dim = basis.shape
    if dim == num_channels:
        return basis
    return torch.cat([basis, torch.eye(num_channels).to(basis) - basis @ basis.t()], 1)


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
    precision = working_dtype(student)
    student, teacher = (maps.to(precision) for maps in loss.same_size(student, teacher))
    identity = torch.eye(teacher.shape[1], device=teacher.device, dtype=teacher.dtype)
    adapted = project_adapted(student, loss.adapters[level], identity)
    return adapted.unflatten(2, teacher.shape[2:]), teacher


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
        """What has been noted, by name; one wait for the device."""
        if not self.shares:
            return {}
        return dict(zip(self.shares, torch.stack(list(self.shares.values())).tolist()))


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
