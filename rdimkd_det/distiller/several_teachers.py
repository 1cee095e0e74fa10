"""What one ``Distillation`` and several of them have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..errors import ConfigError
from ..losses import FeatureLoss


class OneOrMoreTeachers:
    """What the losses of all ``per_teacher``, one ``Distillation`` per teacher, have in common."""

    @property
    def taps(self) -> list[str]:
        """list[str]: The tapped paths of the student, each once."""
        return list(dict.fromkeys(tap for part in self.per_teacher for tap in part.teacher_taps))

    @property
    def active(self) -> bool:
        """bool: Whether any loss has a weight above 0 now, so that a teacher must run."""
        return any(loss.active for loss in self.all_losses())

    @property
    def has_weight(self) -> bool:
        """bool: Whether any loss has a weight above 0, apart from the schedule's factor."""
        return any(max(loss.level_weights) > 0 for loss in self.all_losses())

    @property
    def measures_balance(self) -> bool:
        """bool: Whether a loss still measures its weight 'auto'."""
        return any(loss.measures_balance for loss in self.all_losses())

    def set_factor(self, factor: float) -> None:
        """Set the schedule's factor on every loss weight."""
        for loss in self.all_losses():
            loss.factor = factor

    def zero_losses(self) -> dict[str, Tensor]:
        """Return :meth:`FeatureLoss.zero_losses` of all losses."""
        return {
            name: zero for loss in self.all_losses() for name, zero in loss.zero_losses().items()
        }

    def restore(self, state: Mapping[str, Tensor], which: str) -> None:
        """Load the entry 'distill' of a checkpoint; ``which`` is that one, for the message."""
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            problem = str(error).strip().split('\n')[:2][-1].strip()
            raise ConfigError(
                f'{which} was made with another teacher or other losses than this config; take '
                f'the config of its run. {problem}'
            ) from error

    def all_losses(self) -> list[FeatureLoss]:
        """Return the losses of all teachers and taps."""
        return [loss for part in self.per_teacher for loss in part.losses.values()]


class SeveralTeachers(OneOrMoreTeachers, nn.ModuleList):
    """Several teachers, one ``Distillation`` each, with the interface of one."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__(parts)
        self.shrink = max((part.shrink for part in parts), key=lambda it: it.scale)
        scales = {part.shrink.scale for part in parts} - {1}
        if len(scales) > 1:
            raise ConfigError(
                f'RdimKDDistiller: the teachers have image_scale {sorted(scales)}, and the student '
                f'gets images of one size; give one image_scale, or leave it out of some.'
            )
        for part in parts:
            if part.shrink.scale < self.shrink.scale:
                part.shrink_for_teacher = self.shrink

    @property
    def per_teacher(self) -> list[nn.Module]:
        """list[nn.Module]: One ``Distillation`` per teacher."""
        return list(self)

    def teacher_feats(self, *args, **kwargs) -> list[dict | None]:
        """Return :meth:`Distillation.teacher_feats` of each active teacher, None of the others."""
        return [part.teacher_feats(*args, **kwargs) if part.active else None for part in self]

    def forward(
        self,
        student_outputs: Mapping[str, list[Tensor]],
        teacher_feats: list,
        task_loss=None,
        sizes=None,
    ) -> dict[str, Tensor]:
        """Compute the losses of all teachers, see :meth:`Distillation.forward`."""
        losses = {}
        for part, feats in zip(self, teacher_feats):
            if feats is None:
                losses.update(part.zero_losses())
            else:
                losses.update(part(student_outputs, feats, task_loss, sizes))
        return losses
