"""In which settings the configs of trainings differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.config import Config

from ..inference import student_config

ABSENT = 'not set'
# Where a run is, not what it does.
IGNORED = ('work_dir', 'filename', 'launcher')


def differing_settings(configs: Sequence[Config]) -> dict[str, list[str]]:
    """Settings that are not equal in all configs.

    Args:
        configs (Sequence[Config]): At least one.

    Returns:
        dict[str, list[str]]: Dotted key to its value in each config, in the order of the keys.
    """
    flat = [flatten(comparable(config)) for config in configs]
    keys = sorted({key for settings in flat for key in settings})
    values = {key: [settings.get(key, ABSENT) for settings in flat] for key in keys}
    return {key: each for key, each in values.items() if len(set(each)) > 1}


def comparable(config: Config) -> dict:
    """A config as a dict whose 'model' is the plain detector.

    What a distilled model adds to its student's config is under 'distillation', so that a distilled
    and a plain run differ in that alone, and not in all of the model.
    """
    content = {key: value for key, value in config.to_dict().items() if key not in IGNORED}
    model = content.get('model') or {}
    content['model'] = student_config(model)
    if content['model'] is not model:
        content['distillation'] = {key: it for key, it in model.items() if key != 'student'}
    return content


def flatten(node: object, prefix: str = '') -> dict[str, str]:
    """Leaves of nested dicts and lists, by their dotted keys.

    Args:
        node (object): The tree.
        prefix (str): Key of the tree itself. Defaults to ''.
    """
    if isinstance(node, Mapping) and node:
        items = node.items()
    elif isinstance(node, (list, tuple)) and any(isinstance(it, (Mapping, list)) for it in node):
        items = enumerate(node)
    else:
        return {prefix: _text(node)}
    leaves = {}
    for key, value in items:
        leaves.update(flatten(value, f'{prefix}.{key}' if prefix else str(key)))
    return leaves


def _text(value: object) -> str:
    # A list that has been through a file of the other kind is a tuple.
    return repr(list(value) if isinstance(value, tuple) else value)
