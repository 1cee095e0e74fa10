"""``distill_config``: the config of a distilled training from any two detector configs."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mmengine.config import Config, ConfigDict
from yapf.yapflib.yapf_api import FormatCode

from .errors import ConfigError
from .files.atomic import write_text
from .files.configs import read_config
from .host.registry import enter_scope
from .options import explain
from .projections import PROJECTIONS
from .teacher.build import build_teacher

# Sections of a config that images without labels change.
OF_DATA = ('train_dataloader', 'val_dataloader', 'val_cfg', 'val_evaluator')


def distill_config(
    student: str | Config,
    teacher: str | Config | Mapping,
    checkpoint: str | None = None,
    projection: str | Mapping = 'pca',
    dim: int | float | None = None,
    tap: str | Sequence[str] = 'neck',
    hook: Mapping | None = None,
    **loss_options,
) -> Config:
    """Make the config of a distilled training from a student's and a teacher's config.

    Args:
        student (str | Config): Config of the student's plain training: a path, ``'mmdet::...'``
            or a Config, which is not changed.
        teacher (str | Config | Mapping): Config of the teacher, in the same forms; or
            ``dict(module=...)``, any torch module, with the options of
            :class:`rdimkd_det.teacher.ModuleSource`.
        checkpoint (str, optional): Path or URL of the teacher's weights, which a module may do
            without.
        projection (str | Mapping): 'pca', 'autoencoder', 'random' or 'identity'; or the config of
            a projection, e.g. of one's own. Defaults to 'pca'.
        dim (int | float, optional): Number of directions d; for 'pca' also the share of variance
            to keep. Defaults to a quarter of the channels of the model that has fewer.
        tap (str | Sequence[str]): Path or paths of the matched modules. Defaults to 'neck'.
        hook (Mapping, optional): Options of ``DistillHook``.
        **loss_options: Further options of ``RdimKDLoss``, e.g. ``loss_weight=2.0``,
            which is 'auto' by default here.

    Returns:
        Config: The student's config with a distilled model and ``DistillHook``.

    Raises:
        ConfigError: A config cannot be read or has no model, or ``projection`` is unknown.

    Example:
        >>> from rdimkd_det import distill_config
        >>> cfg = distill_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
        ...                      'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        ...                      'retinanet_r50.pth', dim=32)
        >>> cfg.model.losses.neck.projection, cfg.model.losses.neck.loss_weight
        ({'type': 'PCAProjection', 'dim': 32}, 'auto')
    """
    taps = [tap] if isinstance(tap, str) else list(tap)
    student_cfg = student.copy() if isinstance(student, Config) else read_config(student, 'student')
    if not isinstance(student_cfg.get('model'), Mapping):
        raise ConfigError(f'student: {student} has no model.')
    enter_scope(student_cfg)
    losses = {
        path: {
            'type': 'RdimKDLoss',
            'projection': projection_config(projection, dim),
            'loss_weight': 'auto',
            **loss_options,
        }
        for path in taps
    }
    entry = _teacher_entry(teacher, checkpoint)
    build_teacher(entry, copy.deepcopy(losses), None)[0].probe()  # raises if it has no such tap
    student_cfg.model = ConfigDict(
        type='RdimKDDistiller',
        student=student_cfg.model,
        teacher=entry,
        losses=losses,
    )
    student_cfg.custom_hooks = [
        *(student_cfg.get('custom_hooks') or []),
        dict(type='DistillHook', **(hook or {})),
    ]
    imports = [*imports_of(student_cfg), *imports_of(teacher), 'rdimkd_det']
    student_cfg.custom_imports = {
        'allow_failed_imports': False,
        **(student_cfg.get('custom_imports') or {}),
        'imports': list(dict.fromkeys(imports)),
    }
    return student_cfg


def _teacher_entry(teacher: str | Config | Mapping, checkpoint: str | None) -> dict:
    weights = {} if checkpoint is None else {'checkpoint': str(checkpoint)}
    if isinstance(teacher, Mapping) and 'module' in teacher:
        return {**teacher, **weights}
    if not isinstance(teacher, (str, Path)):
        content = teacher.to_dict() if isinstance(teacher, Config) else teacher
        teacher = {key: content[key] for key in ('model', 'default_scope') if key in content}
    return {'config': teacher, **weights}


def projection_config(projection: str | Mapping, dim: int | float | None) -> dict:
    """Make the config of a projection; the arguments are those of :func:`distill_config`."""
    if isinstance(projection, str):
        if projection not in PROJECTIONS:
            raise ConfigError(
                f'projection must be one of {", ".join(PROJECTIONS)}, got {projection!r}.'
            )
        projection = {'type': PROJECTIONS[projection]}
    return {**projection, **({} if dim is None else {'dim': dim})}


def write_config(path: str, student: str, distilled: Config) -> None:
    """Write a distilled config with the student's config as base, as one would by hand.

    All of it is written where such a base cannot be read, as of a config in pure Python. What is
    written is read back first; if that fails, it is a ``ConfigError``, and nothing stays.
    """
    directory = Path(path).absolute().parent
    directory.mkdir(parents=True, exist_ok=True)
    attempts = [partial(_on_base, student, directory, distilled), lambda: distilled.pretty_text]
    for attempt in attempts:
        source = attempt()
        problem = _unreadable(source, directory / f'.{os.getpid()}.{Path(path).name}')
        if problem is None:
            write_text(Path(path), source)
            return
    raise ConfigError(f'--save-config {path}: what would be written cannot be read: {problem}')


def _unreadable(source: str, beside: Path) -> str | None:
    """Return why the text of a distilled config cannot be read, or None; ``beside`` is removed."""
    try:
        beside.write_text(source, encoding='utf-8')
        found = Config.fromfile(str(beside), import_custom_modules=False)
        assert found.model.type == 'RdimKDDistiller'
    except OSError:
        raise
    except Exception as error:  # a config is Python: anything can go wrong in it
        return explain(error)
    finally:
        beside.unlink(missing_ok=True)


def _on_base(student: str, directory: Path, distilled: Config) -> str:
    """Return the text of a config that stands on the student's."""
    base = student if '::' in student else os.path.relpath(student, directory)
    plain, model = read_config(student, 'student'), distilled.model
    *earlier, own = distilled.custom_hooks
    kept = '*_base_.custom_hooks, ' if earlier else ''
    if earlier and earlier != plain.custom_hooks:
        kept = ''.join(f'{_as_calls(hook)}, ' for hook in earlier)
    options = {key: model[key] for key in ('teacher', 'losses', 'labels') if key in model}
    # `dict(...)` calls, as MMDetection's own configs are written.
    source = (
        f'_base_ = [{base!r}]\n'
        f'custom_imports = {_as_calls(distilled.custom_imports)}\n'
        f'custom_hooks = [{kept}{_as_calls(own)}]\n'
        f"model = dict(_delete_=True, type='RdimKDDistiller', student={{{{_base_.model}}}}, "
        f'{_as_calls(options)[len("dict(") :]}\n'
    )
    for key in OF_DATA:
        section = distilled.get(key)
        if section != plain.get(key):
            replaces = {'_delete_': True, **section} if isinstance(section, Mapping) else section
            source += f'{key} = {_as_calls(replaces)}\n'
    return FormatCode(source, style_config=dict(based_on_style='pep8', column_limit=100))[0]


def _as_calls(value: object) -> str:
    if isinstance(value, Mapping):
        items = value.items()
        if all(str(key).isidentifier() for key in value):
            return f'dict({", ".join(f"{key}={_as_calls(item)}" for key, item in items)})'
        return f'{{{", ".join(f"{key!r}: {_as_calls(item)}" for key, item in items)}}}'
    if isinstance(value, tuple):  # MMDetection's Mosaic accepts no list
        return f'({"".join(f"{_as_calls(each)}, " for each in value)})'
    if isinstance(value, list):
        return f'[{", ".join(map(_as_calls, value))}]'
    return repr(value)


def imports_of(config: str | Config | Mapping) -> list[str]:
    """Return what a config imports; a named one imports it itself when it is read."""
    given = (config.get('custom_imports') if isinstance(config, Config) else None) or {}
    names = given.get('imports') or []
    return [names] if isinstance(names, str) else list(names)
