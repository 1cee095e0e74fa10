"""``RdimKDLoss``: a projection, an adapter and a scale at each FPN level."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from .. import functional
from ..functional import working_dtype
from ..functional.moments import centred, merge_ranks, moments
from ..host.registry import find_type, register
from ..options import is_amount
from ..projections import Projection, default_dim
from .adapters import project_adapted, zero_of_bias
from .feature_loss import FeatureLoss
from .padding import select_positions

NORMALIZE_MODES = (None, 'teacher', 'standardize')


@register(MODELS)
class RdimKDLoss(FeatureLoss):
    """Distance of two feature pyramids in a fixed low-dimensional subspace per level.

    For each level, with student map ``F_s``, teacher map ``F_t``, channel adapter ``r`` and basis
    ``K`` (RdimKD, arXiv 2312.08700)::

        L_level = mean over N, H, W, d of (norm(K^T r(F_s)) - norm(K^T F_t))^2

    The loss works on any two lists of feature maps, without a detector. ``RdimKDDistiller`` fills
    in the channels, the number of levels and their names. The arguments that are not listed are
    those of :class:`FeatureLoss`.

    Args:
        projection (dict | Sequence[Projection]): Config of the projection, from which one is built
            per level, without ``dim`` with a quarter of the channels of the model that has fewer;
            or the built projections, one per level.
        normalize (str, optional): ``'standardize'`` scales every direction of both maps to zero
            mean and unit deviation, ``'teacher'`` divides the loss by the teacher's variance in
            the subspace, ``None`` does not normalise. Defaults to 'standardize'.
        momentum (float): Weight of a new batch in the running variance of
            ``normalize='teacher'``, in (0, 1]. Defaults to 0.05.

    Raises:
        ConfigError: An argument is out of range, or the lists differ in length.

    Example:
        >>> import torch
        >>> from rdimkd_det import RdimKDLoss
        >>> loss = RdimKDLoss(dict(type='RandomProjection', dim=4), student_channels=8,
        ...                   teacher_channels=16, num_levels=2)
        >>> student = [torch.randn(2, 8, 12, 10), torch.randn(2, 8, 6, 5)]
        >>> teacher = [torch.randn(2, 16, 12, 10), torch.randn(2, 16, 6, 5)]
        >>> sorted(loss(student, teacher))
        ['loss_rdimkd_0', 'loss_rdimkd_1']
    """

    name = 'rdimkd'
    leaves_padding_out = True

    def __init__(
        self,
        projection: dict | Sequence[Projection],
        student_channels: int | Sequence[int],
        teacher_channels: int | Sequence[int],
        num_levels: int,
        normalize: str | None = 'standardize',
        loss_weight: float | Sequence[float] | str = 1.0,
        auto_share: float = 10.0,
        resize: str | None = None,
        level_names: Sequence[str] | None = None,
        momentum: float = 0.05,
    ) -> None:
        channels = student_channels, teacher_channels
        super().__init__(*channels, num_levels, loss_weight, auto_share, resize, level_names)
        modes = f'normalize must be one of {NORMALIZE_MODES}, got {normalize!r}.'
        self._require(normalize in NORMALIZE_MODES, modes)
        interval = f'momentum must lie in (0, 1], got {momentum!r}.'
        self._require(is_amount(momentum) and 0 < momentum <= 1, interval)
        self.normalize = normalize
        self.momentum = momentum
        self.projections = nn.ModuleList(self._build_projections(projection))
        self.register_buffer('teacher_variance', torch.full((num_levels,), math.nan))

    def _build_projections(self, projection: dict | Sequence[Projection]) -> list[Projection]:
        if isinstance(projection, Mapping) and 'type' in projection:
            built = [
                MODELS.build(self._with_dim(projection, level) | {'level': level})
                for level in range(self.num_levels)
            ]
        else:
            built = [it for it in projection if isinstance(it, Projection)]
            self._require(
                built and len(built) == len(projection),
                f"projection must be a dict with a type, e.g. 'PCAProjection', or a list of built "
                f'projections, one per level; got {projection!r}.',
            )
        channels = [p.num_channels for p in built]
        self._require(
            channels == self.teacher_channels,
            f"the projections are for {channels} channels, the teacher's maps have "
            f'{self.teacher_channels}; give one projection per level.',
        )
        return built

    def _with_dim(self, projection: Mapping, level: int) -> dict:
        """Fill in a level's number of channels, and d where the projection needs one."""
        teacher = self.teacher_channels[level]
        filled_in = {'num_channels': teacher}
        dim = inspect.signature(find_type(projection, MODELS)).parameters.get('dim')
        if dim is not None and dim.default is dim.empty:
            filled_in['dim'] = default_dim(self.student_channels[level], teacher)
        return {**filled_in, **projection}

    @property
    def same_on_ranks(self) -> bool:
        """bool: Whether the loss is computed over all ranks' batches, and is equal on all ranks."""
        return self.normalize == 'standardize'

    def facts(self) -> dict[str, str]:
        """Return what a resumed training must share: the projection and ``normalize``."""
        return {'projection': self.projections[0].configured, 'normalize': str(self.normalize)}

    def level_distances(
        self,
        levels: Sequence[int],
        maps: Sequence[tuple[Tensor, Tensor]],
        positions: Sequence[Tensor | None] | None = None,
    ) -> list[Tensor]:
        """See :meth:`FeatureLoss.level_distances`."""
        within = positions or [None] * self.num_levels
        if self.normalize == 'standardize':
            # Standardising removes the mean, and the adapter's bias with it.
            found = functional.standardized_losses(
                self._coordinates(level, *maps[level], within[level], with_bias=False)
                for level in levels
            )
            return [it + zero_of_bias(self.adapters[level]) for level, it in zip(levels, found)]
        if self.normalize == 'teacher':
            return self._teacher_scaled(levels, maps, within)
        return [self._plain(level, *maps[level], within[level]) for level in levels]

    def _plain(
        self, level: int, student: Tensor, teacher: Tensor, positions: Tensor | None
    ) -> Tensor:
        comparable = isinstance(self.adapters[level], nn.Identity) and not self.teacher_projected
        if comparable and positions is None:
            student, teacher = self.same_size(student, teacher)
            return functional.rdimkd_loss(student, teacher, self._basis(level, student))
        student, teacher = self._coordinates(level, student, teacher, positions)
        return functional.mean_square(student - teacher)

    def _teacher_scaled(
        self,
        levels: Sequence[int],
        maps: Sequence[tuple[Tensor, Tensor]],
        positions: Sequence[Tensor | None],
    ) -> list[Tensor]:
        """Divide by the running average of the teacher's variance in the subspace."""
        distances, spreads = [], []
        for level in levels:
            student, teacher = self._coordinates(level, *maps[level], positions[level])
            distances.append(functional.mean_square(student - teacher))
            spreads.append(moments(*centred(teacher, teacher)))
        running = self.teacher_variance[levels]
        if levels and (self.training or running.isnan().any()):
            current = torch.stack([it[4].mean() for it in merge_ranks(spreads)]).to(running)
            running = torch.where(running.isnan(), current, running.lerp(current, self.momentum))
            self.teacher_variance[levels] = running
        # A teacher that does not vary teaches nothing, as with 'standardize'.
        scales = running.masked_fill(running <= functional.ABSOLUTE_EPS, math.inf)
        return [it / (scale + functional.ABSOLUTE_EPS) for it, scale in zip(distances, scales)]

    def _coordinates(
        self,
        level: int,
        student: Tensor,
        teacher: Tensor,
        positions: Tensor | None,
        with_bias: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Compute ``K^T r(F_s)``, with or without adapter bias, and ``K^T F_t``: (N, d, H * W).

        With ``positions`` they are (1, d, M).
        """
        student, teacher = self.same_size(student, teacher.detach())
        basis, adapter = self._basis(level, student), self.adapters[level]
        if self.teacher_projected:
            teacher = teacher.flatten(2).to(basis.dtype)
        else:
            teacher = functional.project(teacher, basis)
        student = project_adapted(student, adapter, basis, with_bias)
        return select_positions(student, positions), select_positions(teacher, positions)

    def _basis(self, level: int, student: Tensor) -> Tensor:
        # Products with half-precision maps are computed in the basis's precision.
        return self.projections[level].basis.to(working_dtype(student))

    def extra_repr(self) -> str:
        return f'normalize={self.normalize!r}, {super().extra_repr()}'
