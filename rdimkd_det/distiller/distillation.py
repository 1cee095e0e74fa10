"""``Distillation``: the child module that adds a teacher and its losses to a student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..bridge import check_channels, check_same_channels
from ..channels import image_channels
from ..errors import ConfigError
from ..features import Level, crop_to_common, match_levels, probe_levels
from ..files.configs import teacher_entries
from ..losses import FeatureLoss
from ..losses.auto_weight import note_balance
from ..losses.padding import positions_in_images
from ..options import type_name
from ..teacher.build import build_teacher
from .build_loss import build_tap_loss, check_losses
from .finite_check import FiniteCheck
from .image_scale import ImageShrinker, in_pixels_of_student
from .monitoring import ComparedMaps, Monitor
from .several_teachers import OneOrMoreTeachers, SeveralTeachers


class Distillation(OneOrMoreTeachers, nn.Module):
    """Runs the teacher on the student's batch and compares the tapped feature maps.

    ``teacher`` and ``losses`` are those of :class:`rdimkd_det.RdimKDDistiller`. The student is
    probed, and no reference to it is kept. ``name`` tells the teacher from others.
    """

    def __init__(self, student: nn.Module, teacher: dict, losses: dict, name: str = '') -> None:
        super().__init__()
        self.name = name
        self.monitor = Monitor()
        check_losses(losses)
        losses = {tap: dict(loss) for tap, loss in losses.items()}
        self.loss_configs = losses
        student_levels = probe_levels(student, list(losses))
        strides = [level.stride for levels in student_levels.values() for level in levels]
        self.image_channels = image_channels(student)
        check_channels(student.data_preprocessor, self.image_channels, 'student')
        self.shrink = ImageShrinker(teacher.get('image_scale', 1), student.data_preprocessor)
        # For a teacher without an image_scale beside one that has it: it sees the student's images.
        self.shrink_for_teacher: ImageShrinker | None = None
        self.teacher, self.teacher_taps = build_teacher(
            teacher, losses, student.data_preprocessor, strides
        )
        if not self.teacher.projected:
            check_same_channels(self.image_channels, self.teacher.image_channels)
        teacher_levels = {
            tap: [in_pixels_of_student(level, self.shrink.scale) for level in levels]
            for tap, levels in self.teacher.probe().items()
        }
        self.level_pairs: dict[str, list[tuple[Level, Level]]] = {}
        self.losses = nn.ModuleDict()
        for tap, loss in losses.items():
            where = f"{type_name(loss)} at '{tap}'"
            levels = student_levels[tap], teacher_levels[self.teacher_taps[tap]]
            pairs = match_levels(*levels, where, nearest=loss.get('resize') is not None)
            self.level_pairs[tap] = pairs
            self.losses[_key(tap)] = build_tap_loss(self.full_name(tap), loss, pairs)
        self.finite = FiniteCheck(all(loss.same_on_ranks for loss in self.all_losses()))
        self._provide_bases()
        if not self.active:
            # So that gradient clipping and DDP ignore the adapters.
            self.requires_grad_(False)

    @property
    def per_teacher(self) -> list[Distillation]:
        """list[Distillation]: One per teacher: itself."""
        return [self]

    @property
    def pipeline_scale(self) -> int:
        """int: By what the data pipeline's images are larger than the student's."""
        return (self.shrink_for_teacher or self.shrink).scale

    def prepare(self, cfg: Config) -> None:
        """Load the teacher, or check that a cached teacher belongs to this training."""
        self.teacher.prepare(cfg)
        # Again, because a resumed checkpoint may have replaced the bases since __init__.
        self._provide_bases()

    def _provide_bases(self) -> None:
        for tap, loss in self.items():
            indices = [teacher.index for _, teacher in self.level_pairs[tap]]
            self.teacher.provide_bases(self.teacher_taps[tap], indices, loss)

    def full_name(self, tap: str) -> str:
        """Return a tap's name, prefixed with the teacher's name where there are several."""
        return f'{self.name}_{tap}'.strip('_')

    def items(self) -> list[tuple[str, FeatureLoss]]:
        """Return the taps of the student, each with its loss."""
        return [(tap, self.losses[_key(tap)]) for tap in self.taps]

    def teacher_feats(
        self, inputs: Tensor, data_samples: Sequence | None, wait: bool = True
    ) -> dict[str, list[Tensor]]:
        """Compute the teacher's maps of the matched levels for a batch, by the student's tap.

        The batch is that of the data pipeline, before any ``image_scale`` shrinks it.
        Without ``wait`` it may run in parallel with the student, and only :meth:`forward` may use
        the maps.
        """
        if self.shrink_for_teacher is not None and not self.teacher.projected:
            inputs, data_samples = self.shrink_for_teacher(inputs, data_samples)
        outputs = self.teacher(inputs, data_samples)
        if wait:
            self.teacher.wait(outputs)
        return {
            tap: [outputs[self.teacher_taps[tap]][teacher.index] for _, teacher in pairs]
            for tap, pairs in self.level_pairs.items()
        }

    def compared(
        self,
        student_outputs: Mapping[str, list[Tensor]],
        teacher_feats: Mapping[str, list[Tensor]],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[ComparedMaps]:
        """Match the student's maps and :meth:`teacher_feats` of a batch; the losses see these.

        ``sizes`` are (H, W) of the images in pixels; None if no image is padded.
        """
        self.teacher.wait(teacher_feats)
        found = []
        for tap, loss in self.items():
            pairs = [
                crop_to_common(
                    student_outputs[tap][student.index], maps, student.stride, teacher.stride
                )
                for (student, teacher), maps in zip(self.level_pairs[tap], teacher_feats[tap])
            ]
            # They are compared on the grid of the map that is not resized.
            grid = 1 if loss.resize == 'student' else 0
            positions = [
                positions_in_images(sizes, maps[grid], levels[grid].stride)
                for levels, maps in zip(self.level_pairs[tap], pairs)
            ]
            padded = loss.leaves_padding_out and any(it is not None for it in positions)
            found.append(ComparedMaps(tap, loss, *zip(*pairs), positions if padded else None))
        return found

    def forward(
        self,
        student_outputs: Mapping[str, list[Tensor]],
        teacher_feats: Mapping[str, list[Tensor]],
        task_loss: Callable[[], Tensor] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the 0-dim losses 'loss_<name>_<tap>_s<stride>' of all taps and levels.

        ``task_loss`` returns the student's own loss of a batch that ``loss_weight='auto'`` may be
        measured in; ``sizes`` are those of :meth:`compared`. A loss that is not finite raises a
        ``FloatingPointError``, unless ``DistillHook`` checks later.
        """
        losses, compared = {}, self.compared(student_outputs, teacher_feats, sizes)
        for tap, loss, *maps, positions in compared:
            options = {} if positions is None else {'positions': positions}
            # Without gradients, as in a look at the losses before training, none is measured.
            measures = task_loss and loss.measures_balance and torch.is_grad_enabled()
            if not (measures or loss.needs_auto_weight):
                losses.update(loss(*maps, **options))
                continue
            distances = loss.distances(*maps, **options)
            if measures:
                own = student_outputs[tap]
                note_balance(self.full_name(tap), loss, distances, own, task_loss())
            losses.update(loss.weighted(distances))
        self.monitor(compared)
        self.finite.note(losses)
        return losses

    def describe(self) -> list[str]:
        """Describe the teacher and its input, then each level: stride, channels, d, variance."""
        scale = self.shrink.scale
        larger = f", images {scale} times as large as the student's" if scale > 1 else ''
        lines = [f'teacher {self.teacher.describe()}{larger}']
        for tap, loss in self.items():
            for level, (student, teacher) in enumerate(self.level_pairs[tap]):
                adapter = ' (1x1 adapter)' if loss.has_adapter(level) else ''
                how = loss.projections[level].summary if loss.projections else type(loss).__name__
                lines.append(
                    f'{tap} stride {student.stride}: channels {student.channels} -> '
                    f'{teacher.channels}{adapter}, {how}'
                )
        return lines


def build_distillation(
    student: nn.Module, teacher: dict | Sequence[dict], losses: dict
) -> Distillation | SeveralTeachers:
    """Build the distillation of a student; each of several teachers may have its own losses."""
    if isinstance(teacher, Mapping):
        return Distillation(student, teacher, losses)
    parts = []
    for name, entry in teacher_entries(teacher):
        options = {key: value for key, value in entry.items() if key not in ('name', 'losses')}
        parts.append(Distillation(student, options, entry.get('losses', losses), name))
    if len({part.name for part in parts}) < len(parts):
        raise ConfigError('RdimKDDistiller: the names of the teachers must differ.')
    return SeveralTeachers(parts)


def _key(tap: str) -> str:
    return tap.replace('.', '_')  # nn.ModuleDict takes no dots
