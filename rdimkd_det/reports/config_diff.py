"""Settings in which the configs of trainings differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.config import Config

from ..inference import student_config

ABSENT = 'not set'
# Where a run is stored and how it is started do not change what it does.
IGNORED = ('work_dir', 'filename', 'launcher')


def differing_settings(configs: Sequence[Config]) -> dict[str, list[str]]:
    """Return the settings that are not equal in all configs.

    Args:
        configs (Sequence[Config]): At least one config.

    Returns:
        dict[str, list[str]]: Dotted key to its value in each config, sorted by key.
    """
    flat = [flatten(comparable(config)) for config in configs]
    keys = sorted({key for settings in flat for key in settings})
    values = {key: [settings.get(key, ABSENT) for settings in flat] for key in keys}
    return {key: each for key, each in values.items() if len(set(each)) > 1}


def comparable(config: Config) -> dict:
    """Return a config as a dict whose 'model' is the plain detector.

    What a distilled model adds to its student's config moves to 'distillation'. A distilled and a
    plain run then differ in that key only, not in the whole model.
    """
    content = {key: value for key, value in config.to_dict().items() if key not in IGNORED}
    model = content.get('model') or {}
    content['model'] = student_config(model)
    if content['model'] is not model:
        of_student = ('student', 'data_preprocessor')
        content['distillation'] = {k: it for k, it in model.items() if k not in of_student}
    return content


def flatten(node: object, prefix: str = '') -> dict[str, str]:
    """Flatten nested dicts and lists into their leaves by dotted key.

    Args:
        node (object): The tree.
        prefix (str): Key of the tree itself. Defaults to ''.

    Returns:
        dict[str, str]: Dotted key to the ``repr`` of the leaf.
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
    # Some config formats turn a tuple into a list.
    return repr(list(value) if isinstance(value, tuple) else value)
