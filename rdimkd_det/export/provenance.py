"""The provenance of a student: its teachers, losses and metrics, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from ..files.configs import counts_iterations, teacher_entries
from ..files.scalars import due_validations, read_history
from ..options import type_name
from ..teacher.module_source import directory_of, find_licence


def distillation_of(config: Config) -> dict:
    """Return the teachers, losses and hook options of a distilled config; {} for a plain one."""
    model = config.model
    if 'student' not in model:
        return {}
    hooks = [hook for hook in config.get('custom_hooks') or [] if type_name(hook) == 'DistillHook']
    return {
        'teachers': [{**entry, **_names(entry)} for _, entry in teacher_entries(model.teacher)],
        'losses': model.losses,
        'inherit': model.get('inherit', ()),
        'hook': hooks[0] if hooks else {},
    }


def _names(teacher: Mapping) -> dict:
    # A local path means nothing on other machines; a URL and `mmdet::...` do.
    paths = {key: teacher[key] for key in ('config', 'checkpoint') if teacher.get(key) is not None}
    names = {key: _name(path) for key, path in paths.items()}
    return names | (_names_of_module(teacher['module']) if 'module' in teacher else {})


def _names_of_module(module: Mapping) -> dict:
    """Return a module's arguments without local directories, and the licence in one of them."""
    directory = directory_of(module)
    names = {
        key: Path(value).name if directory is not None and str(value) == str(directory) else value
        for key, value in module.items()
    }
    if licence := find_licence(directory):
        text = licence.read_text('utf-8', errors='replace')
        return {'module': names, 'licence': f'{licence.name}:\n{text}'}
    return {'module': names}


def _name(path: object) -> str:
    if isinstance(path, Mapping):
        return 'given as a dict'
    return path if '::' in path or '://' in path else Path(path).name


def recorded_metrics(checkpoint: Path, content: Mapping, config: Config) -> dict[str, float]:
    """Return the validation result for a checkpoint's weights, if the training run recorded one.

    A checkpoint is written before its validation, whose result is in the ``scalars.json`` of the
    run; the best checkpoint is written afterwards, and holds the result. A checkpoint from the
    middle of an epoch has no result.

    Args:
        checkpoint (Path): Path of the checkpoint.
        content (Mapping): Content of the checkpoint.
        config (Config): Config of the run.

    Returns:
        dict[str, float]: E.g. 'coco/bbox_mAP' to the AP; empty without a result.
    """
    if checkpoint.name.startswith('best_'):
        scalars = (content.get('message_hub') or {}).get('log_scalars') or {}
        return {
            name.removeprefix('val/'): float(values.data[0][-1])
            for name, values in scalars.items()
            if name.startswith('val/') and '/' in name[4:] and isinstance(values, HistoryBuffer)
        }
    time = _validated_at(content, config)
    history = read_history(checkpoint.parent, due=due_validations(config))
    return {name: it for name, it in history.val.get(time, {}).items() if '/' in name}


def _validated_at(content: Mapping, config: Config) -> int | None:
    """Return the epoch or iteration under which a validation of the weights is logged, or None."""
    meta = content.get('meta', {})
    if counts_iterations(config):
        return meta.get('iter')
    info = (content.get('message_hub') or {}).get('runtime_info') or {}
    known = [meta.get('epoch'), meta.get('iter'), info.get('max_epochs'), info.get('max_iters')]
    if not all(isinstance(number, int) for number in known):
        return None
    epoch, iteration, max_epochs, max_iters = known
    # All epochs have one length: at the end of one, the same share of both counts is done.
    return epoch if iteration * max_epochs == epoch * max_iters else None


def plain_data(value: object) -> object:
    """Convert a value to dicts, lists, strings and numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain_data(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain_data(entry) for entry in value]
    if hasattr(value, 'tolist'):
        return value.tolist()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
