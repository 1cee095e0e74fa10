"""Monitoring of a training: the loss weights in force, and the variance the student explains.

RdimKD (arXiv 2312.08700) guides the student inside the subspace and leaves it free in the
complement. The share of the teacher's variance that the student explains is logged for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..functional import project, working_dtype
from ..functional.moments import centred, merge, merge_ranks, moments
from ..losses import FeatureLoss
from ..losses.adapters import fold_adapter
from ..losses.padding import select_positions

# Prevents NaN along a direction without any variance.
TINY = 1e-30
# Number of pieces that the largest level is projected in (smaller levels take fewer), so that the
# coordinates in memory are a fraction of the maps.
NUM_PIECES = 16


class ComparedMaps(NamedTuple):
    """What the loss of a tap compares: maps matched by stride, cropped to their common part."""

    tap: str  # path of the student's module
    loss: FeatureLoss
    student: tuple[Tensor, ...]  # (N, C_s, H, W), one per level
    teacher: tuple[Tensor, ...]  # (N, C_t, H, W), of the same levels
    # Per level what `positions_in_images` returns; None where no level has padding to leave out.
    positions: list[Tensor | None] | None


def explained_share(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the share of the teacher's variance that a student explains per direction.

    .. math:: \frac{\sum_k \sigma_{t,k}^2 \max(\rho_k, 0)^2}{\sum_k \sigma_{t,k}^2}

    with the teacher's variance :math:`\sigma_{t,k}^2` over batch and positions along direction
    ``k``, and the correlation :math:`\rho_k` of student and teacher along it. Per direction it is
    the coefficient of determination of a linear fit of the teacher to the student. Like
    ``normalize='standardize'``, it ignores the student's mean and scale. A negative correlation
    explains nothing. From coordinates (N, D, L) to a 0-dim share over the batches of all ranks.

    Example:
        >>> import torch
        >>> from rdimkd_det.distiller.monitoring import explained_share
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
    loss: FeatureLoss,
    student_feats: Sequence[Tensor],
    teacher_feats: Sequence[Tensor],
    positions: Sequence[Tensor | None] | None = None,
) -> dict[str, Tensor]:
    """Compute the share of the teacher's variance explained inside and outside the subspace.

    The complement has no basis: there, the channels of ``(I - K K^T) F`` are compared. Each level
    has an 'explained_in_<level name>', and an 'explained_out_<level name>' unless d = C_t or the
    teacher is cached.
    """
    length = -(-max(maps[0, 0].numel() for maps in student_feats) // NUM_PIECES)
    within = positions or [None] * len(student_feats)
    levels = enumerate(zip(student_feats, teacher_feats, within))
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


def _moments(
    loss: FeatureLoss,
    level: int,
    student: Tensor,
    teacher: Tensor,
    positions: Tensor | None,
    length: int,
) -> Tensor:
    """Compute the moments of a level on this rank: (6, d), or (6, d + C_t) with the complement.

    The level is projected in pieces of ``length`` positions, to save memory.
    """
    student, teacher = loss.same_size(student, teacher)
    basis = directions = of_teacher = loss.projections[level].basis.to(working_dtype(student))
    num_channels, dim = basis.shape
    if loss.teacher_projected:  # a cache holds no maps of the complement
        of_teacher = torch.eye(dim).to(basis)
    elif dim < num_channels:
        complement = torch.eye(num_channels).to(basis) - basis @ basis.t()
        directions = of_teacher = torch.cat([basis, complement], 1)
    of_student = fold_adapter(loss.adapters[level], directions)
    selected = (select_positions(maps.flatten(2), positions) for maps in (student, teacher))
    pieces = zip(*(maps.split(length, 2) for maps in selected))
    coordinates = ((project(s, of_student), project(t, of_teacher)) for s, t in pieces)
    return merge(torch.stack([moments(*centred(*pair)) for pair in coordinates]))


class Monitor:
    """Records the shares of variance that the student explains, at a call that is ``due``."""

    def __init__(self) -> None:
        self.due = False
        self._shares: dict[str, Tensor] = {}

    @torch.compiler.disable  # so that a change of `due` does not compile the student again
    def __call__(self, compared: Iterable[ComparedMaps]) -> None:
        """Record :func:`explained_shares` of all losses with projections, if that is due."""
        for _, loss, *maps in compared if self.due else ():
            if loss.projections:
                self._shares.update(explained_shares(loss, *maps))

    def take(self) -> dict[str, float]:
        """Return the recorded shares by name, and end recording; waits for the device once."""
        shares, self._shares, self.due = self._shares, {}, False
        if not shares:
            return {}
        return dict(zip(shares, torch.stack(list(shares.values())).tolist()))


def effective_weights(loss: FeatureLoss) -> dict[str, float]:
    """Return the effective weights of a loss: the levels' weights times the schedule and 'auto'.

    By 'rdimkd_weight_<tap>', or 'rdimkd_weight_<level name>' if they differ; none before 'auto' is.
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
