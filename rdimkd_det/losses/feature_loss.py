"""``FeatureLoss``: the base of every loss that may stand at a tap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..functional import working_dtype
from .adapters import adapt, new_adapter, zero_of
from .level_weights import LevelWeights

RESIZE_MODES = (None, 'student', 'teacher')


class FeatureLoss(LevelWeights):
    """Distance of two feature pyramids, level by level: checks, adapters, weights and names.

    A loss of one's own is a class with one method, :meth:`distance`. Registered, e.g. in
    ``mmengine.registry.MODELS``, it works at any tap of a ``RdimKDDistiller``, which fills in the
    channels, the number of levels and their names.

    Attributes:
        name (str): Names the losses: 'loss_<name>_<level name>'.
        uses_adapters (bool): Whether a student's map of other channels than the teacher's passes a
            learned 1x1 convolution first. Defaults to True.
        leaves_padding_out (bool): Whether the loss takes ``positions``, see :meth:`forward`; if
            not, the padding of a batch is compared too. Defaults to False.
        projections (nn.ModuleList): One :class:`~rdimkd_det.projections.Projection` per level, set
            by a loss that compares in a subspace, to have them fitted, monitored and cached; empty
            otherwise.

    Args:
        student_channels (int | Sequence[int]): Channels C_s of the student's maps, one number for
            all levels or one per level.
        teacher_channels (int | Sequence[int]): Channels C_t of the teacher's maps, likewise.
        num_levels (int): Number of FPN levels.
        loss_weight (float | Sequence[float] | str): Weight of every level, or one weight per level,
            0 or more. ``'auto'``, under ``RdimKDDistiller`` only, makes the distillation's gradient
            norm at the student's maps ``auto_share`` times the task's, in the median of the first
            10 training batches with objects; from then on it is fixed. Defaults to 1.0.
        auto_share (float): See ``loss_weight='auto'``; above 0. Defaults to 10.0.
        resize (str, optional): Which of two maps of different size to resize (bilinearly) to the
            size of the other: 'student' or 'teacher'. With None, different sizes are an error.
            Defaults to None.
        level_names (Sequence[str], optional): Names of the levels in the keys of the losses and in
            messages. Defaults to '0', '1', ...

    Raises:
        ConfigError: An argument is out of range, or the lists differ in length.

    Example:
        >>> import torch
        >>> from rdimkd_det import FeatureLoss
        >>> class CosineLoss(FeatureLoss):
        ...     name = 'cosine'
        ...     def distance(self, level, student, teacher):
        ...         return 1 - torch.cosine_similarity(student, teacher).mean()
        >>> loss = CosineLoss(student_channels=8, teacher_channels=16, num_levels=1)
        >>> list(loss([torch.randn(2, 8, 12, 10)], [torch.randn(2, 16, 12, 10)]))
        ['loss_cosine_0']
    """

    name = 'feature'
    uses_adapters = True
    leaves_padding_out = False

    def __init__(
        self,
        student_channels: int | Sequence[int],
        teacher_channels: int | Sequence[int],
        num_levels: int,
        loss_weight: float | Sequence[float] | str = 1.0,
        auto_share: float = 10.0,
        resize: str | None = None,
        level_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(num_levels, loss_weight, auto_share)
        self.student_channels = self._per_level('student_channels', student_channels)
        self.teacher_channels = self._per_level('teacher_channels', teacher_channels)
        self.level_names = list(level_names or map(str, range(num_levels)))
        names = f'level_names must be {num_levels} names, got {self.level_names}.'
        self._require(len(self.level_names) == num_levels, names)
        modes = f'resize must be one of {RESIZE_MODES}, got {resize!r}.'
        self._require(resize in RESIZE_MODES, modes)
        self.resize = resize
        # Whether the teacher's maps are cached coordinates K^T F_t, with d channels.
        self.teacher_projected = False
        self.projections = nn.ModuleList()
        self.adapters = nn.ModuleList(
            new_adapter(c_s, c_t, level) if self.uses_adapters and c_s != c_t else nn.Identity()
            for level, (c_s, c_t) in enumerate(zip(self.student_channels, self.teacher_channels))
        )

    def distance(self, level: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the maps of one level; implement this or :meth:`level_distances`.

        Args:
            level (int): Index of the level.
            student (Tensor): Student's map (N, C_t, H, W) behind the adapter, float32 or float64;
                (N, C_s, H, W) without adapters.
            teacher (Tensor): Teacher's map (N, C_t, H, W), in the same precision.

        Returns:
            Tensor: The distance, 0-dim.
        """
        raise NotImplementedError(f'{type(self).__name__} has no method distance().')

    def level_distances(
        self, levels: Sequence[int], maps: Sequence[tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        """Compare the maps of some levels.

        A loss that ``leaves_padding_out`` also takes ``positions``, None or as in :meth:`forward`.

        Args:
            levels (Sequence[int]): Indices of the levels with a weight.
            maps (Sequence[tuple[Tensor, Tensor]]): Student's and teacher's map of every level.

        Returns:
            list[Tensor]: The 0-dim distance of each level with a weight.
        """
        return [self.distance(level, *self.aligned(level, *maps[level])) for level in levels]

    def facts(self) -> dict[str, str]:
        """Return what a resumed training must share with the one that wrote its checkpoint."""
        return {'loss': type(self).__name__}

    def has_adapter(self, level: int) -> bool:
        """Return whether the student's map of a level passes a learned convolution."""
        return not isinstance(self.adapters[level], nn.Identity)

    @property
    def same_on_ranks(self) -> bool:
        """bool: Whether the loss is computed over all ranks' batches, and is equal on all ranks."""
        return False

    @property
    def loss_names(self) -> list[str]:
        """list[str]: The name of each level's loss."""
        return [f'loss_{self.name}_{level_name}' for level_name in self.level_names]

    @property
    def fitted(self) -> bool:
        """bool: Whether every projection has its basis."""
        return all(projection.fitted for projection in self.projections)

    def forward(
        self,
        student_feats: Sequence[Tensor],
        teacher_feats: Sequence[Tensor],
        positions: Sequence[Tensor | None] | None = None,
    ) -> dict[str, Tensor]:
        """Compare two feature pyramids.

        Args:
            student_feats (Sequence[Tensor]): Student's maps (N, C_s, H, W), one per level.
            teacher_feats (Sequence[Tensor]): Teacher's maps (N, C_t, H, W) of the same levels, and
                of the same sizes unless ``resize`` is set; no gradient flows into them.
            positions (Sequence[Tensor | None], optional): Per level the indices (M,) into the
                N * H * W positions to compare, None for all of them. Defaults to all.

        Returns:
            dict[str, Tensor]: 'loss_<name>_<level name>' to the 0-dim loss of each level, times its
            weight; float32, or float64 for float64 maps.

        Raises:
            ValueError: The maps have another number, other channels or different sizes.
            RuntimeError: A projection has not been fitted, or the weight 'auto' has not been set.
        """
        if self.needs_auto_weight:
            raise RuntimeError(
                f"{type(self).__name__}: loss_weight='auto' compares with the task's gradient, "
                f'which only RdimKDDistiller sees; give a number.'
            )
        options = {} if positions is None else {'positions': positions}
        return self.weighted(self.distances(student_feats, teacher_feats, **options))

    def distances(
        self,
        student_feats: Sequence[Tensor],
        teacher_feats: Sequence[Tensor],
        positions: Sequence[Tensor | None] | None = None,
    ) -> dict[str, Tensor]:
        """Compute :meth:`forward` without the weights; 0 for a level whose weight is 0."""
        if not len(student_feats) == len(teacher_feats) == self.num_levels:
            raise ValueError(
                f'{type(self).__name__}: expected {self.num_levels} levels, got '
                f'{len(student_feats)} maps of the student and {len(teacher_feats)} of the teacher.'
            )
        maps = list(zip(student_feats, teacher_feats))
        for level, pair in enumerate(maps):
            self._check_maps(level, *pair)
        levels = [level for level, weight in enumerate(self.level_weights) if weight > 0]
        # Sums over a whole feature map need more than half precision.
        with torch.autocast(student_feats[0].device.type, enabled=False):
            options = {} if positions is None else {'positions': positions}
            found = dict(zip(levels, self.level_distances(levels, maps, **options)))
        for level, distance in found.items():
            self._check_distance(level, distance)
        nothing = student_feats[0].new_zeros((), dtype=working_dtype(student_feats[0]))
        return {
            name: found[level] if level in found else nothing + self._zero(level)
            for level, name in enumerate(self.loss_names)
        }

    def zero_losses(self) -> dict[str, Tensor]:
        """Return a loss of exactly 0 per level with trained parameters, so that DDP finds them."""
        zeros = {name: self._zero(level) for level, name in enumerate(self.loss_names)}
        return {name: zero for name, zero in zeros.items() if isinstance(zero, Tensor)}

    def _zero(self, level: int) -> Tensor | float:
        """Return 0, with a gradient of 0 for a level's adapter and the subclass's parameters."""
        return zero_of(
            parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
            and (not name.startswith('adapters.') or name.startswith(f'adapters.{level}.'))
        )

    def aligned(self, level: int, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return a level's maps in one size and in full precision, the student's adapted."""
        precision = working_dtype(student)
        student, teacher = self.same_size(student, teacher.detach())
        return adapt(student.to(precision), self.adapters[level]), teacher.to(precision)

    def same_size(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Resize the map (N, C, H, W) that ``resize`` names, if any, to the size of the other."""
        if self.resize is None or student.shape[2:] == teacher.shape[2:]:
            return student, teacher
        if self.resize == 'student':
            return _resized(student, like=teacher), teacher
        return student, _resized(teacher, like=student)

    def _check_maps(self, level: int, student: Tensor, teacher: Tensor) -> None:
        who = f'{type(self).__name__} at {self.level_names[level]}'
        shapes = f'student map {tuple(student.shape)} and teacher map {tuple(teacher.shape)}'
        of_teacher = self.teacher_channels[level]
        if self.teacher_projected:
            of_teacher = self.projections[level].basis.shape[1]
        expected = {'student': self.student_channels[level], 'teacher': of_teacher}
        for feats, (side, channels) in zip((student, teacher), expected.items()):
            if feats.dim() != 4 or feats.shape[1] != channels:
                raise ValueError(
                    f'{who}: {shapes}: expected (N, {channels}, H, W) of the {side}; '
                    f'set {side}_channels to what the model gives.'
                )
        if student.shape[0] != teacher.shape[0]:
            raise ConfigError(
                f'{who}: {shapes} differ in batch size; a module that sees an image several times '
                f'in training, as the branches of a TridentNet, cannot be tapped.'
            )
        if self.resize is None and student.shape[2:] != teacher.shape[2:]:
            raise ValueError(
                f"{who}: {shapes} differ in size; set resize='student' or resize='teacher'."
            )
        if self.projections:
            self.projections[level].check_fitted(who)

    def _check_distance(self, level: int, distance: object) -> None:
        if not isinstance(distance, Tensor) or distance.dim():
            shape = f' of shape {tuple(distance.shape)}' if isinstance(distance, Tensor) else ''
            raise ValueError(
                f'{type(self).__name__} at {self.level_names[level]}: the distance of a level must '
                f'be a 0-dim tensor, e.g. a mean; got a {type(distance).__name__}{shape}.'
            )

    def _per_level(self, name: str, channels: int | Sequence[int]) -> list[int]:
        listed = [channels] * self.num_levels if isinstance(channels, int) else list(channels)
        self._require(
            len(listed) == self.num_levels > 0,
            f'{name} must be one number or one per level, got {channels} for '
            f'num_levels={self.num_levels}.',
        )
        return listed


def _resized(feats: Tensor, like: Tensor) -> Tensor:
    """Resize a map (N, C, H, W) to the size of another."""
    feats = feats.to(working_dtype(feats))
    return F.interpolate(feats, size=like.shape[2:], mode='bilinear', align_corners=False)
