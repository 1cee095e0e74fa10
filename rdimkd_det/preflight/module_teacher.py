"""What preflight says of a teacher that is a torch module, not a detector."""

from __future__ import annotations

from torch import nn

from ..distiller.distillation import Distillation
from ..teacher.fan_out import describe_plan
from ..teacher.module_source import directory_of, find_licence
from .report import Report

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def describe_module(part: Distillation, network: nn.Module) -> str:
    """Return what a module is, its parameters, and where its weights and licence come from."""
    source = part.teacher.source
    numbers = sum(parameter.numel() for parameter in network.parameters())
    directory = directory_of(source.module)
    weights, licence = source.checkpoint or directory, find_licence(directory)
    return (
        f'{source.name}: {type(network).__name__} of {numbers / 1e6:.3g} million parameters, '
        f'{f"weights from {weights}" if weights else "its own weights"}'
        f'{f"; licence: {licence}" if licence else ""}'
    )


def judge_module(part: Distillation, network: nn.Module, report: Report, what: str) -> None:
    """Report on what a module is, and if its callable has loaded no weights."""
    text, source = describe_module(part, network), part.teacher.source
    norms = [it for it in network.modules() if isinstance(it, NORMS)]
    biases = [it.bias for it in norms if getattr(it, 'bias', None) is not None]
    if (
        source.checkpoint
        or directory_of(source.module)
        or not biases
        or any(it.any() for it in biases)
    ):
        report.ok(what, text)
        return
    report.warning(
        what,
        f'{text}; it looks untrained: every bias of its norms is exactly 0, as it was initialised',
        'let the callable load weights (timm: pretrained=True), or give a checkpoint',
    )


def check_strides(part: Distillation, report: Report, what: str) -> None:
    """Report where the maps at the student's strides come from, and if most have none."""
    source, placement, texts = part.teacher.source, part.teacher.placement, []
    if placement.scale != 1:
        texts.append(
            f'it sees images at {float(placement.scale):g} of their size; strides count in the '
            f"student's pixels"
        )
    for tap, levels in placement.levels.items():
        plan, strides = placement.plans.get(tap), (str(level.stride) for level in levels)
        texts.append(describe_plan(plan) if plan else ', '.join(strides))
    text = '; '.join(dict.fromkeys(texts))
    own = {level.stride for levels in placement.levels.values() for level in levels}
    wanted = {*placement.student_strides}
    without = sorted(wanted - own)
    if source.levels or source.fan_out or 2 * len(without) < len(wanted):
        report.ok(what, text)
        return
    report.warning(
        what,
        f"{text}; the student's levels of stride {', '.join(map(str, without))} learn nothing",
        'set fan_out=True in model.teacher (--teacher-options fan_out=True), which makes a map for '
        'each',
    )
