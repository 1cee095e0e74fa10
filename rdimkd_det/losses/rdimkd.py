"""``RdimKDLoss``: a projection, an adapter and a scale at each FPN level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .. import functional
from ..errors import ConfigError
from ..functional import working_dtype
from ..moments import merge_spreads, spread
from ..projections import Projection
from ..values import is_amount
from .adapters import fold_adapter, new_adapter, project_adapted, zero_of, zero_of_bias

NORMALIZE_MODES = (None, 'teacher', 'standardize')
RESIZE_MODES = (None, 'student', 'teacher')


@MODELS.register_module()
class RdimKDLoss(nn.Module):
    """Distance of two feature pyramids in a fixed low-dimensional subspace per level.

    For each level, with student map ``F_s``, teacher map ``F_t``, channel adapter ``r`` and basis
    ``K`` (RdimKD, arXiv 2312.08700)::

        L_level = mean over N, H, W, d of (norm(K^T r(F_s)) - norm(K^T F_t))^2

    The loss works on any two lists of feature maps, without a detector. ``RdimKDDistiller`` fills
    in the channels, the number of levels and their names.

    Args:
        projection (dict | Sequence[Projection]): Config of the projection, from which one is built
            per level; or the built projections, one per level.
        student_channels (int | Sequence[int]): Channels C_s of the student's maps, one number for
            all levels or one per level.
        teacher_channels (int | Sequence[int]): Channels C_t of the teacher's maps, likewise. Where
            they differ from C_s the adapter is a learned 1x1 convolution, else the identity.
        num_levels (int): Number of FPN levels.
        normalize (str, optional): ``'standardize'`` scales every direction of both maps to zero
            mean and unit deviation, ``'teacher'`` divides the loss by the teacher's variance in
            the subspace, ``None`` does not normalise. Defaults to 'standardize'.
        loss_weight (float | Sequence[float] | str): Weight of every level, or one weight per level,
            0 or more. ``'auto'``, under ``RdimKDDistiller`` only, is set once, at the first
            training batch with finite gradients: the distillation's gradient norm at the student's
            maps is then ``auto_share`` times the task's. Defaults to 1.0.
        auto_share (float): See ``loss_weight='auto'``; above 0. Defaults to 1.0.
        resize (str, optional): Which of two maps of different size to resize (bilinearly) to the
            size of the other: 'student' or 'teacher'. With None, different sizes are an error.
            Defaults to None.
        level_names (Sequence[str], optional): Names of the levels in the keys of the losses and in
            messages. Defaults to '0', '1', ...
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

    def __init__(
        self,
        projection: dict | Sequence[Projection],
        student_channels: int | Sequence[int],
        teacher_channels: int | Sequence[int],
        num_levels: int,
        normalize: str | None = 'standardize',
        loss_weight: float | Sequence[float] | str = 1.0,
        auto_share: float = 1.0,
        resize: str | None = None,
        level_names: Sequence[str] | None = None,
        momentum: float = 0.05,
    ) -> None:
        super().__init__()
        if normalize not in NORMALIZE_MODES:
            raise ConfigError(
                f'RdimKDLoss: normalize must be one of {NORMALIZE_MODES}, got {normalize!r}.'
            )
        if resize not in RESIZE_MODES:
            raise ConfigError(f'RdimKDLoss: resize must be one of {RESIZE_MODES}, got {resize!r}.')
        if not is_amount(momentum) or not 0 < momentum <= 1:
            raise ConfigError(f'RdimKDLoss: momentum must lie in (0, 1], got {momentum!r}.')
        if not is_amount(auto_share) or auto_share == 0:
            raise ConfigError(f'RdimKDLoss: auto_share must be above 0, got {auto_share!r}.')
        self.num_levels = num_levels
        self.student_channels = _per_level('student_channels', student_channels, num_levels)
        self.teacher_channels = _per_level('teacher_channels', teacher_channels, num_levels)
        self.level_names = list(level_names or map(str, range(num_levels)))
        if len(self.level_names) != num_levels:
            raise ConfigError(
                f'RdimKDLoss: level_names must be {num_levels} names, got {self.level_names}.'
            )
        self.normalize = normalize
        self.loss_weight = loss_weight
        self.auto = isinstance(loss_weight, str) and loss_weight == 'auto'
        self.level_weights = [1.0] * num_levels if self.auto else _weights(loss_weight, num_levels)
        self.auto_share = auto_share
        self.resize = resize
        self.momentum = momentum
        # The schedule's factor on all weights.
        self.factor = 1.0
        # Whether the teacher's maps are cached coordinates K^T F_t, with d channels.
        self.teacher_projected = False
        self.projections = nn.ModuleList(self._build_projections(projection))
        self.adapters = nn.ModuleList(
            nn.Identity() if c_s == c_t else new_adapter(c_s, c_t, level)
            for level, (c_s, c_t) in enumerate(zip(self.student_channels, self.teacher_channels))
        )
        self.register_buffer('teacher_variance', torch.full((num_levels,), math.nan))
        self.register_buffer('auto_weight', torch.tensor(math.nan if self.auto else 1.0))
        self._weight_known = not self.auto

    def _build_projections(self, projection: dict | Sequence[Projection]) -> list[Projection]:
        if isinstance(projection, Mapping) and 'type' in projection:
            built = [
                MODELS.build(dict(projection, num_channels=channels, level=level))
                for level, channels in enumerate(self.teacher_channels)
            ]
        else:
            built = [it for it in projection if isinstance(it, Projection)]
            if not built or len(built) < len(projection):
                raise ConfigError(
                    f"RdimKDLoss: projection must be a dict with a type, e.g. 'PCAProjection', or "
                    f'a list of built projections, one per level; got {projection!r}.'
                )
        channels = [p.num_channels for p in built]
        if channels != self.teacher_channels:
            raise ConfigError(
                f"RdimKDLoss: the projections are for {channels} channels, the teacher's maps "
                f'have {self.teacher_channels}; give one projection per level.'
            )
        return built

    @property
    def fitted(self) -> bool:
        """bool: Whether every projection has its basis."""
        return all(p.fitted for p in self.projections)

    @property
    def active(self) -> bool:
        """bool: Whether any level has a weight above 0 now."""
        return self.factor > 0 and any(weight > 0 for weight in self.level_weights)

    @property
    def needs_auto_weight(self) -> bool:
        """bool: Whether ``loss_weight='auto'`` has not been set yet."""
        if not self._weight_known:  # reading `auto_weight` waits for the device
            self._weight_known = not bool(self.auto_weight.isnan())
        return not self._weight_known

    @property
    def same_on_ranks(self) -> bool:
        """bool: Whether the loss is computed over all ranks' batches, and is equal on all ranks."""
        return self.normalize == 'standardize'

    def _load_from_state_dict(self, *args) -> None:
        self._weight_known = not self.auto
        super()._load_from_state_dict(*args)

    def forward(
        self, student_feats: Sequence[Tensor], teacher_feats: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Compare two feature pyramids.

        Args:
            student_feats (Sequence[Tensor]): Student's maps (N, C_s, H, W), one per level.
            teacher_feats (Sequence[Tensor]): Teacher's maps (N, C_t, H, W) of the same levels, and
                of the same sizes unless ``resize`` is set; no gradient flows into them.

        Returns:
            dict[str, Tensor]: 'loss_rdimkd_<level name>' to the 0-dim loss of each level, times its
            weight; float32, or float64 for float64 maps.

        Raises:
            ValueError: The maps have another number, other channels or different sizes.
            RuntimeError: A projection has not been fitted, or the weight 'auto' has not been set.
        """
        if self.needs_auto_weight:
            raise RuntimeError(
                "RdimKDLoss: loss_weight='auto' compares with the task's gradient, which only "
                'RdimKDDistiller sees; give a number.'
            )
        return self.weighted(self.distances(student_feats, teacher_feats))

    def weighted(self, distances: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply the result of :meth:`distances` by the weight of each level."""
        common = self.auto_weight * self.factor if self.auto else self.factor
        return {
            name: weight * common * distance
            for weight, (name, distance) in zip(self.level_weights, distances.items())
        }

    def distances(
        self, student_feats: Sequence[Tensor], teacher_feats: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Compute :meth:`forward` without the weights; 0 for a level whose weight is 0."""
        if not len(student_feats) == len(teacher_feats) == self.num_levels:
            raise ValueError(
                f'RdimKDLoss: expected {self.num_levels} levels, got {len(student_feats)} maps of '
                f'the student and {len(teacher_feats)} of the teacher.'
            )
        for level, maps in enumerate(zip(student_feats, teacher_feats)):
            self._check_maps(level, *maps)
        # Sums over a whole feature map need more than half precision.
        with torch.autocast(student_feats[0].device.type, enabled=False):
            distances = self._distances(student_feats, teacher_feats)
        return {f'loss_rdimkd_{name}': it for name, it in zip(self.level_names, distances)}

    def _distances(
        self, student_feats: Sequence[Tensor], teacher_feats: Sequence[Tensor]
    ) -> list[Tensor]:
        maps = list(zip(student_feats, teacher_feats))
        levels = [level for level, weight in enumerate(self.level_weights) if weight > 0]
        if self.normalize == 'standardize':
            # Standardising removes the mean, and the adapter's bias with it.
            found = functional.standardized_losses(
                self._coordinates(level, *maps[level], with_bias=False) for level in levels
            )
            found = [it + zero_of_bias(self.adapters[level]) for level, it in zip(levels, found)]
        elif self.normalize == 'teacher':
            found = self._teacher_scaled(levels, maps)
        else:
            found = [self._plain(level, *maps[level]) for level in levels]
        distances = dict(zip(levels, found))
        return [
            distances[level] if level in distances else self._left_out(level, student)
            for level, student in enumerate(student_feats)
        ]

    def _left_out(self, level: int, student: Tensor) -> Tensor:
        zero = student.new_zeros((), dtype=working_dtype(student))
        return zero + zero_of(self.adapters[level].parameters())

    def _plain(self, level: int, student: Tensor, teacher: Tensor) -> Tensor:
        if isinstance(self.adapters[level], nn.Identity) and not self.teacher_projected:
            student, teacher = self.same_size(student, teacher)
            return functional.rdimkd_loss(student, teacher, self._basis(level, student))
        student, teacher = self._coordinates(level, student, teacher)
        return functional.mean_square(student - teacher)

    def _teacher_scaled(
        self, levels: Sequence[int], maps: Sequence[tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        distances, spreads = [], []
        for level in levels:
            student, teacher = self._coordinates(level, *maps[level])
            distances.append(functional.mean_square(student - teacher))
            spreads.append(spread(teacher))
        if levels and (self.training or self.teacher_variance[levels].isnan().any()):
            self._note_variances(levels, [it.mean() for it in merge_spreads(spreads)])
        scales = self.teacher_variance.clone() + functional.ABSOLUTE_EPS
        return [distance / scales[level] for level, distance in zip(levels, distances)]

    def _note_variances(self, levels: Sequence[int], variances: Sequence[Tensor]) -> None:
        """Update the running average of the teacher's variance in the subspace."""
        current = torch.stack(list(variances)).to(self.teacher_variance)
        running = self.teacher_variance[levels]
        running = torch.where(running.isnan(), current, running.lerp(current, self.momentum))
        self.teacher_variance[levels] = running

    def _coordinates(
        self, level: int, student: Tensor, teacher: Tensor, with_bias: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Compute ``K^T r(F_s)``, with or without adapter bias, and ``K^T F_t``: (N, d, H * W)."""
        student, teacher = self.same_size(student, teacher.detach())
        basis, adapter = self._basis(level, student), self.adapters[level]
        if self.teacher_projected:
            teacher = teacher.flatten(2).to(basis.dtype)
        else:
            teacher = functional.project(teacher, basis)
        if with_bias:
            return project_adapted(student, adapter, basis), teacher
        return functional.project(student, fold_adapter(adapter, basis)), teacher

    def _basis(self, level: int, student: Tensor) -> Tensor:
        # Products with half-precision maps are computed in the basis's precision.
        return self.projections[level].basis.to(working_dtype(student))

    def same_size(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Resize the map (N, C, H, W) that ``resize`` names, if any, to the size of the other."""
        if self.resize == 'student':
            return _resize(student, like=teacher), teacher
        if self.resize == 'teacher':
            return student, _resize(teacher, like=student)
        return student, teacher

    def _check_maps(self, level: int, student: Tensor, teacher: Tensor) -> None:
        who = f'RdimKDLoss at {self.level_names[level]}'
        shapes = f'student map {tuple(student.shape)} and teacher map {tuple(teacher.shape)}'
        teacher_channels = self.teacher_channels[level]
        if self.teacher_projected:
            teacher_channels = self.projections[level].basis.shape[1]
        for side, feats, channels in (
            ('student', student, self.student_channels[level]),
            ('teacher', teacher, teacher_channels),
        ):
            if feats.dim() != 4 or feats.shape[1] != channels:
                raise ValueError(
                    f'{who}: {shapes}: expected (N, {channels}, H, W) of the {side}; '
                    f'set {side}_channels to what the model gives.'
                )
        if student.shape[0] != teacher.shape[0]:
            raise ValueError(f'{who}: {shapes} differ in batch size.')
        if self.resize is None and student.shape[2:] != teacher.shape[2:]:
            raise ValueError(
                f"{who}: {shapes} differ in size; set resize='student' or resize='teacher'."
            )
        if not self.projections[level].fitted:
            raise RuntimeError(
                f'{who}: {type(self.projections[level]).__name__} learns its basis from the '
                f"teacher's features and is not fitted; DistillHook does that before training."
            )

    def extra_repr(self) -> str:
        return f'normalize={self.normalize!r}, loss_weight={self.loss_weight}'


def _per_level(name: str, channels: int | Sequence[int], num_levels: int) -> list[int]:
    per_level = [channels] * num_levels if isinstance(channels, int) else list(channels)
    if len(per_level) != num_levels or num_levels < 1:
        raise ConfigError(
            f'RdimKDLoss: {name} must be one number or one per level, got {channels} for '
            f'num_levels={num_levels}.'
        )
    return per_level


def _resize(feats: Tensor, like: Tensor) -> Tensor:
    if feats.shape[2:] == like.shape[2:]:
        return feats
    feats = feats.to(working_dtype(feats))
    return F.interpolate(feats, size=like.shape[2:], mode='bilinear', align_corners=False)


def _weights(loss_weight: float | Sequence[float], num_levels: int) -> list[float]:
    listed = isinstance(loss_weight, Sequence) and not isinstance(loss_weight, str)
    weights = list(loss_weight) if listed else [loss_weight] * num_levels
    if len(weights) != num_levels or not all(map(is_amount, weights)):
        raise ConfigError(
            f'RdimKDLoss: loss_weight must be a number of 0 or more, a list of {num_levels} (one '
            f"per level), or 'auto'; got {loss_weight!r}."
        )
    return [float(weight) for weight in weights]
