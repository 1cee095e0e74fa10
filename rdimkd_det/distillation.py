"""``Distillation``: all that one teacher adds to a student, in one child module."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import Tensor, nn

from .bridge import InputBridge
from .errors import ConfigError
from .features import Level, crop_to_common, match_levels, probe_levels
from .losses import RdimKDLoss
from .teacher import Teacher


class Distillation(nn.Module):
    """Runs the teacher on the student's batch and compares the tapped feature maps.

    Args:
        student (nn.Module): The student detector; it is looked at, not kept.
        teacher (dict): ``config`` and ``checkpoint`` of the teacher.
        losses (dict): Path of a module of the student, e.g. 'neck', to the config of a loss. The
            teacher is tapped at the same path unless the entry has a ``teacher_module``.

    Raises:
        ConfigError: Anything in the two that cannot work: see the message.
    """

    def __init__(self, student: nn.Module, teacher: dict, losses: dict) -> None:
        super().__init__()
        losses = {tap: dict(loss) for tap, loss in losses.items()}
        self.teacher_taps = {tap: loss.pop('teacher_module', tap) for tap, loss in losses.items()}
        self.teacher = _build_teacher(teacher, list(self.teacher_taps.values()))
        self.bridge = InputBridge(student.data_preprocessor, self.teacher.build_preprocessor())
        student_levels = probe_levels(student, list(losses))
        teacher_levels = self.teacher.probe()
        self.level_pairs: dict[str, list[tuple[Level, Level]]] = {}
        self.losses = nn.ModuleDict()
        for tap, loss in losses.items():
            where = f"RdimKDLoss at '{tap}'"
            pairs = match_levels(
                student_levels[tap], teacher_levels[self.teacher_taps[tap]], where
            )
            self.level_pairs[tap] = pairs
            self.losses[_key(tap)] = _build_loss(tap, loss, pairs)
        if not self.active:
            # Off means off: gradient clipping and DDP do not even see the adapters.
            self.requires_grad_(False)

    @property
    def taps(self) -> list[str]:
        """list[str]: The tapped paths of the student."""
        return list(self.teacher_taps)

    @property
    def active(self) -> bool:
        """bool: Whether any loss has a weight, so that the teacher must run."""
        return any(loss.loss_weight > 0 for loss in self.losses.values())

    def items(self) -> list[tuple[str, RdimKDLoss]]:
        """Each tap with its loss."""
        return [(tap, self.losses[_key(tap)]) for tap in self.taps]

    def teacher_feats(
        self, inputs: Tensor, data_samples: Sequence | None
    ) -> dict[str, list[Tensor]]:
        """The teacher's maps that have a counterpart, for a batch of the student.

        Args:
            inputs (Tensor): Batch (N, 3, H, W) from the student's preprocessor.
            data_samples (Sequence[DetDataSample], optional): Its data samples.

        Returns:
            dict[str, list[Tensor]]: Tap of the student to the teacher's maps, by level.
        """
        outputs = self.teacher(self.bridge(inputs, data_samples))
        return {
            tap: [outputs[self.teacher_taps[tap]][teacher.index] for _, teacher in pairs]
            for tap, pairs in self.level_pairs.items()
        }

    def forward(
        self, student_outputs: Mapping[str, list[Tensor]], teacher_feats: Mapping[str, list[Tensor]]
    ) -> dict[str, Tensor]:
        """Losses of all taps and levels.

        Args:
            student_outputs (Mapping[str, list[Tensor]]): Tap to all its feature maps.
            teacher_feats (Mapping[str, list[Tensor]]): From :meth:`teacher_feats`.

        Returns:
            dict[str, Tensor]: 'loss_rdimkd_<tap>_s<stride>': 0-dim loss.

        Raises:
            FloatingPointError: A loss is not finite; names it.
        """
        losses = {}
        for tap, loss in self.items():
            feats = [
                crop_to_common(student_outputs[tap][student.index], teacher)
                for (student, _), teacher in zip(self.level_pairs[tap], teacher_feats[tap])
            ]
            losses.update(loss(*zip(*feats)))
        _check_finite(losses)
        return losses

    def zero_losses(self) -> dict[str, Tensor]:
        """A loss of exactly 0 for each level with an adapter, so that DDP finds no unused parameter.

        Returns:
            dict[str, Tensor]: As :meth:`forward` gives; empty without adapters.
        """
        return {
            f'loss_rdimkd_{name}': 0 * sum(parameter.sum() for parameter in parameters)
            for _, loss in self.items()
            for name, adapter in zip(loss.level_names, loss.adapters)
            if (parameters := [p for p in adapter.parameters() if p.requires_grad])
        }

    def describe(self) -> list[str]:
        """One line per level: stride, channels, adapter, d and the variance kept."""
        lines = []
        for tap, loss in self.items():
            for (student, teacher), projection in zip(self.level_pairs[tap], loss.projections):
                adapter = '' if student.channels == teacher.channels else ' (1x1 adapter)'
                kept = float(projection.variance_kept)
                share = '' if kept != kept else f', {kept:.1%} of the variance'
                lines.append(
                    f'{tap} stride {student.stride}: channels {student.channels} -> '
                    f'{teacher.channels}{adapter}, {type(projection).__name__} '
                    f'd = {projection.basis.shape[1] or "to be fitted"}{share}'
                )
        return lines


def _key(tap: str) -> str:
    return tap.replace('.', '_')  # nn.ModuleDict takes no dots


def _build_teacher(teacher: dict, taps: list[str]) -> Teacher:
    unknown = teacher.keys() - {'config', 'checkpoint'}
    if unknown or 'config' not in teacher:
        raise ConfigError(
            f'RdimKDDistiller: teacher must be dict(config=..., checkpoint=...), got the keys '
            f'{sorted(teacher)}.'
        )
    return Teacher(teacher['config'], teacher.get('checkpoint'), taps)


def _build_loss(tap: str, loss: dict, pairs: list[tuple[Level, Level]]) -> RdimKDLoss:
    measured = {
        'student_channels': [student.channels for student, _ in pairs],
        'teacher_channels': [teacher.channels for _, teacher in pairs],
        'num_levels': len(pairs),
    }
    for name, value in measured.items():
        given = loss.get(name, value)
        of_each_level = isinstance(value, list) and all(given == number for number in value)
        if given != value and not of_each_level:
            raise ConfigError(
                f"RdimKDLoss at '{tap}': {name}={given} contradicts the model, which has {value}; "
                f'leave it out, it is filled in.'
            )
    names = [f'{tap}_s{student.stride}' for student, _ in pairs]
    try:
        return MODELS.build({**loss, **measured, 'level_names': names})
    except (ConfigError, KeyError, TypeError) as error:
        raise ConfigError(f"loss at '{tap}': {error.args[0]}") from error


def _check_finite(losses: Mapping[str, Tensor]) -> None:
    values = torch.stack([loss.detach() for loss in losses.values()])
    if not values.isfinite().all():
        broken = [name for name, loss in losses.items() if not loss.isfinite()]
        raise FloatingPointError(
            f'{", ".join(broken)} is not finite: the feature maps of student or teacher hold NaN '
            f'or infinity at that level; lower the learning rate, or train without fp16.'
        )


def log(message: str, level: int = logging.INFO) -> None:
    """Log to the running Runner's logger, or print where there is none."""
    print_log(message, logger='current', level=level)
