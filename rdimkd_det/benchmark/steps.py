"""A plain and a distilled training step, the parts of their difference, and the floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

import torch
from mmdet.registry import MODELS

from ..files.configs import read_detector_config
from ..samples import one_per_image
from ..stopwatch import Cost
from ..teacher import Teacher
from ..teacher.acceleration import Acceleration
from .preparation import batch_for
from .subject import Subject

PLAIN = 'student step'
DISTILLED = 'distilled step'
MONITORED = 'distilled step, monitored'
LOSS = 'distillation loss, and backward'
READ = 'read both maps'
# Prefix of the names of all ways to run the teacher.
TEACHER = 'teacher: '


def step_pieces(subject: Subject) -> dict[str, Callable]:
    """Return everything about a step that is timed, as functions without arguments."""
    return {
        PLAIN: subject.plain_step,
        DISTILLED: subject.distilled_step,
        'distilled step, weight 0': subject.step_at_weight_zero,
        MONITORED: subject.monitored_step,
        f'{TEACHER}as configured': subject.teacher_maps,
        **_other_teachers(subject),
        'teacher with head and loss, fp32': _whole_teacher(subject),
        **_distillation_loss(subject),
    }


def teacher_variants(device: torch.device) -> dict[str, Acceleration]:
    """Return the teacher's accelerations: none, and the full one in each precision of a device."""
    precisions = ['fp32']
    if device.type == 'cuda':
        precisions += ['fp16', 'bf16'] if torch.cuda.is_bf16_supported() else ['fp16']
    return {
        'fp32, unfused': Acceleration(fuse=False, channels_last=False, precision='fp32'),
        **{f'{name}, fused, channels_last': Acceleration(precision=name) for name in precisions},
    }


def _other_teachers(subject: Subject) -> dict[str, Callable]:
    teacher, inputs, samples = subject.model.distill.teacher, subject.inputs, subject.samples
    preprocessor = subject.model.data_preprocessor

    def piece(acceleration: Acceleration) -> Callable:
        variant = Teacher(teacher.source, teacher.taps, acceleration, preprocessor)
        return lambda: variant(inputs, samples)

    variants = teacher_variants(subject.device)
    return {f'{TEACHER}{name}': piece(variant) for name, variant in variants.items()}


def _whole_teacher(subject: Subject) -> Callable:
    """Return the teacher with head and loss in fp32, as several other tools run it."""
    config = read_detector_config(subject.cfg.model.teacher.config)
    teacher = MODELS.build(config).to(subject.device).eval()
    images = subject.batch['inputs']
    batch = batch_for(teacher, len(images), images[0].shape[1:], subject.collate)
    data = subject.model.data_preprocessor(batch, True)
    inputs, samples = data['inputs'], one_per_image(data['data_samples'], data['inputs'])

    @torch.no_grad()
    def piece() -> None:
        teacher.loss(subject.model.distill.teacher.bridge(inputs, samples), samples)

    return piece


def _distillation_loss(subject: Subject) -> dict[str, Callable]:
    distill = subject.model.distill
    of_student, of_teacher = subject.student_maps(), subject.teacher_maps()
    leaves = [maps for of_tap in of_student.values() for maps in of_tap]
    pairs = distill.level_pairs.items()
    read = [of_student[tap][level.index] for tap, levels in pairs for level, _ in levels]
    read += [maps for of_tap in of_teacher.values() for maps in of_tap]

    def forward() -> torch.Tensor:
        return sum(distill(of_student, of_teacher).values())

    return {
        'distillation loss, forward': forward,
        LOSS: lambda: torch.autograd.grad(forward(), leaves, allow_unused=True),
        READ: lambda: [maps.sum() for maps in read],
    }


def compare_with_floor(steps: Mapping[str, Cost]) -> dict:
    """Compare the distilled step with the student step and with the floor, in ms.

    The floor is a student step, the teacher's fastest forward pass, and reading both maps once.
    """
    student, distilled = steps[PLAIN].median, steps[DISTILLED].median
    teachers = [name for name in steps if name.startswith(TEACHER)]
    fastest = min(teachers, key=lambda name: steps[name].median)
    floor = student + steps[fastest].median + steps[READ].median
    return {
        'steps': {name: asdict(cost) for name, cost in steps.items()},
        'floor': floor,
        'fastest_teacher': fastest,
        'distilled_to_floor': distilled / floor,
        'distilled_to_plain': distilled / student,
    }
