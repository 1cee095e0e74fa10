"""Where a student comes from: its teacher, losses and AP, as plain data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from ..files.configs import counts_iterations, teacher_entries
from ..names import type_name


def distillation_of(config: Config) -> dict:
    """What taught the student: teachers by name, losses, hook options; empty for a plain one."""
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
    # A path of somebody's disk means nothing elsewhere; an address and `mmdet::...` do.
    config, checkpoint = teacher.get('config'), str(teacher.get('checkpoint'))
    if not isinstance(config, str):
        config = 'given as a dict'
    return {
        'config': config if '::' in config else Path(config).name,
        'checkpoint': checkpoint if '://' in checkpoint else Path(checkpoint).name,
    }


def recorded_metrics(checkpoint: Path, content: Mapping, config: Config) -> dict[str, float]:
    """The validation's result for these very weights, if the training recorded one.

    A checkpoint is written before its validation, whose result stands in the ``scalars.json`` of
    its run; the best one is written after, and holds the result. One that was written in the middle
    of an epoch has none.

    Args:
        checkpoint (Path): File of the checkpoint.
        content (Mapping): What is in it.
        config (Config): The training's config.

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
    if time is None:
        return {}
    found = {}
    for log in sorted(checkpoint.parent.glob('*/vis_data/scalars.json')):
        for entry in _entries(log):
            metrics = {name: value for name, value in entry.items() if '/' in name}
            if metrics and entry.get('step') == time:
                found = metrics
    return found


def _validated_at(content: Mapping, config: Config) -> int | None:
    """The epoch or iteration under which a validation of a checkpoint's weights is logged."""
    meta = content.get('meta', {})
    if counts_iterations(config):
        return meta.get('iter')
    info = (content.get('message_hub') or {}).get('runtime_info') or {}
    known = [meta.get('epoch'), meta.get('iter'), info.get('max_epochs'), info.get('max_iters')]
    if not all(isinstance(number, int) for number in known):
        return None
    epoch, iteration, max_epochs, max_iters = known
    # All epochs are of one length: at the end of one, as much of both is done.
    return epoch if iteration * max_epochs == epoch * max_iters else None


def _entries(log: Path) -> Iterator[dict]:
    for line in log.read_text().splitlines():
        with suppress(ValueError):  # a killed training leaves half a line
            yield json.loads(line)


def plain_data(value: object) -> object:
    """Dicts, lists, strings and numbers, whatever the training kept them in."""
    if isinstance(value, Mapping):
        return {str(key): plain_data(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain_data(entry) for entry in value]
    if hasattr(value, 'tolist'):
        return value.tolist()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
