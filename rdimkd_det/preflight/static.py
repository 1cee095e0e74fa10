"""Checks that need no image: weights, classes, input and levels."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from mmengine.config import Config
from torch import Tensor, nn

from ..distiller import RdimKDDistiller, distilled_student
from ..distiller.distillation import Distillation
from ..features import Level
from ..files.checkpoints import load_checkpoint_safely
from ..files.strict_loading import prefix_hint
from ..losses import FeatureLoss
from ..options import listed
from ..projections import Projection
from .classes import data_classes, label_map, num_classes, teacher_classes
from .input_formats import InputFormat
from .module_teacher import check_strides, judge_module
from .report import Report, Table

LEVEL_COLUMNS = ('level', 'stride', 'student', 'teacher', 'adapter', 'resize', 'd', 'weight')


def check_static(cfg: Config, model: nn.Module, report: Report) -> None:
    """Report on a distilled model's weights, classes, input and levels."""
    model = distilled_student(model)
    data = data_classes(cfg)
    check_student_classes(model, data, data_classes(cfg, things=True), report)
    if cfg.get('load_from') and not cfg.get('resume'):
        check_load_from(cfg.load_from, model, report)
    parts = model.distill.per_teacher
    pairs = chain(*(pairs for part in parts for pairs in part.level_pairs.values()))
    image = max(level.image for pair in pairs for level in pair)  # all take one of this side
    table = Table(f'Levels, of an image of {image}x{image}', LEVEL_COLUMNS)
    for part in parts:
        if is_live(part):
            check_weights(part, report)
            check_teacher_classes(part, data, report)
            check_input(model, part, report)
            if part.teacher.source.model is None:
                check_strides(part, report, topic('Teacher strides', part))
        else:
            why = part.teacher.describe() if part.has_weight else 'no loss has a weight'
            report.ok(topic('Teacher weights', part), f'not loaded: {why}')
        for tap, loss in part.items():
            table.rows += level_rows(part, tap, loss, image)
    report.tables.append(table)


def is_live(part: Distillation) -> bool:
    """Return whether a teacher will run: a loss has a weight, and its maps are not cached."""
    return part.has_weight and not part.teacher.projected


def live_modules(model: RdimKDDistiller) -> list[Distillation]:
    """Return the teachers that will run and are modules, not detectors."""
    parts = model.distill.per_teacher
    return [part for part in parts if is_live(part) and part.teacher.source.model is None]


def topic(name: str, part: Distillation) -> str:
    """Return the name of a topic, with the teacher's name if there are several teachers."""
    return f'{name} ({part.name})' if part.name else name


def check_weights(part: Distillation, report: Report) -> None:
    """Load a teacher's weights strictly, and report on them."""
    what, teacher = topic('Teacher weights', part), part.teacher
    network = teacher.load_plain()
    if teacher.source.model is None:
        judge_module(part, network, report, what)
        return
    state = network.state_dict()
    untrained = untrained_parts(state)
    if untrained:
        report.error(
            what,
            f'{teacher.checkpoint} looks untrained: every bias of {" and ".join(untrained)} is '
            f'exactly 0, as it was initialised',
            'give the checkpoint of a finished training as model.teacher.checkpoint',
        )
        return
    name, parts = Path(teacher.checkpoint).name, dict.fromkeys(key.split('.')[0] for key in state)
    report.ok(what, f'{name}: {len(state)} of {len(state)} keys of {" and ".join(parts)} match')


def untrained_parts(state: Mapping[str, Tensor]) -> list[str]:
    """Return which of 'backbone' and 'neck' have biases that are all 0, as before any training."""
    trained: dict[str, bool] = {}
    for key, value in state.items():
        if key.endswith('.bias'):
            part = key.split('.')[0]
            trained[part] = trained.get(part, False) or bool(value.any())
    return [part for part, is_trained in trained.items() if not is_trained]


def check_student_classes(
    model: nn.Module,
    data: tuple[str, ...] | None,
    things: tuple[str, ...] | None,
    report: Report,
) -> None:
    """Report on the number of classes of the student's heads."""
    if not model.distill.labels:
        report.ok('Classes', 'not needed: the training is without labels')
        return
    if data is None:
        report.warning(
            'Classes',
            'the data set names no classes',
            'set train_dataloader.dataset.metainfo=dict(classes=(...))',
        )
        return
    heads = num_classes(model)
    fitting = {len(data), len(things or data)}
    wrong = {path: number for path, number in heads.items() if number not in fitting}
    for path, number in wrong.items():
        report.error(
            'Classes',
            f"the student's {path} has num_classes={number}, the data set has {len(data)} "
            f'({listed(data)})',
            f'set model.student.{path}.num_classes={len(data)}, or the metainfo of the data set',
        )
    if not wrong:
        report.ok('Classes', f'student and data set: {len(data)} ({listed(data)})')


def check_load_from(path: str, model: nn.Module, report: Report) -> None:
    """Report how many of the student's weights a checkpoint provides; the Runner skips the rest."""
    weights, own = load_checkpoint_safely(path, who='model'), model.state_dict()
    other = [k for k, v in own.items() if k not in weights or weights[k].shape != v.shape]
    text = f'{Path(path).name}: {len(own) - len(other)} of {len(own)} keys of the student match'
    if not other:
        report.ok('load_from', text)
    elif len(other) == len(own):
        report.error(
            'load_from',
            f'{text}: it is of another model{prefix_hint(own, weights)}',
            'give a checkpoint of this model',
        )
    elif all(key in weights for key in other):
        report.ok(
            'load_from',
            f'{text}; {listed(other)} have another shape, as for other classes, and are '
            f'initialised randomly',
        )
    else:
        report.warning(
            'load_from',
            f'{text}; not {listed(other)}',
            'the others are initialised randomly; if that is not meant, give a checkpoint of this '
            'model',
        )


def check_teacher_classes(part: Distillation, data: tuple[str, ...] | None, report: Report) -> None:
    """Report on how the teacher's classes differ from those of the data."""
    what, classes = topic('Teacher classes', part), teacher_classes(part.teacher.source) or ()
    unknown = [name for name in data or () if name not in classes]
    alike = {name.casefold().strip(): name for name in classes}
    misspelt = [name for name in unknown if name.casefold().strip() in alike]
    if misspelt:
        name = misspelt[0]
        report.warning(
            what,
            f"'{name}' is '{alike[name.casefold().strip()]}' for the teacher",
            'write metainfo.classes of both data sets alike; until then they count as others',
        )
        return
    text = f'{len(classes)} ({listed(classes)})'
    if part.teacher.source.model is None:
        text = 'none: it is a module, not a detector'
    elif not classes:
        text = 'neither its checkpoint nor its config names them; feature maps carry over'
    elif unknown:
        text += (
            f"; it knows {len(data) - len(unknown)} of the data set's {len(data)}, not "
            f'{listed(unknown)}: feature maps carry over, and a teacher of these very classes is a '
            f'better one'
        )
    elif data is not None:
        same, known = classes == data, len(label_map(classes, data))
        text = 'the same' if same else f'{len(classes)}, the {known} of the data set among them'
    report.ok(what, text)


def check_input(model: nn.Module, part: Distillation, report: Report) -> None:
    """Report on what both models expect, and what the bridge does."""
    what, bridge = topic('Input', part), part.teacher.bridge
    divisor = bridge.teacher_divisor
    student = _described(model.data_preprocessor, part.image_channels)
    if bridge.does_nothing:
        report.ok(what, f'student and teacher: {student}; the bridge has nothing to do')
        return
    teacher = _described(part.teacher.build_preprocessor(), part.image_channels)
    if part.teacher.source.model is None:
        teacher += f' (from {part.teacher.source.input_origin})'
    steps = [
        'reverses the channels' if bridge.flip_channels else '',
        '' if bridge.same_values else 'changes the normalisation',
        f'pads with {bridge.pad_value:g} to '
        + (f'multiples of {divisor}' if divisor > 1 else 'the largest image of the batch'),
        '' if bridge.input_scale == 1 else f'resizes by {float(bridge.input_scale):g}',
    ]
    does = ', '.join(filter(None, steps))
    report.ok(what, f'student: {student}\nteacher: {teacher}\nthe bridge {does}')


def _described(preprocessor: nn.Module, channels: int) -> str:
    padding = f'padding {preprocessor.pad_value:g}, divisor {preprocessor.pad_size_divisor}'
    return f'{InputFormat.of(preprocessor, channels)}, {padding}'


def level_rows(
    part: Distillation, tap: str, loss: FeatureLoss, image: int
) -> list[tuple[str, ...]]:
    """Return the rows of the level table, as strings."""
    return [
        (
            name,
            str(student.stride),
            _shape(student, image),
            _shape(teacher, image),
            '1x1 conv' if loss.has_adapter(level) else '-',
            loss.resize or '-',
            _directions(loss.projections[level]) if loss.projections else '-',
            'auto' if loss.auto else f'{weight:g}',
        )
        for level, (name, (student, teacher), weight) in enumerate(
            zip(loss.level_names, part.level_pairs[tap], loss.level_weights)
        )
    ]


def _directions(projection: Projection) -> str:
    return str(projection.basis.shape[1] or projection.dim or 'to be fitted')


def _shape(level: Level, image: int) -> str:
    size = -(-image // level.stride)
    return f'{level.channels}x{size}x{size}'
