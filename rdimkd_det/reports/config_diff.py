"""Settings in which the configs of trainings differ."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.config import Config

from ..distiller.inference import student_config
from ..files.configs import leaves

ABSENT = 'not set'
# Where a run is stored and how it is started do not change what it does.
IGNORED = ('work_dir', 'filename', 'launcher')


def differing_settings(configs: Sequence[Config]) -> dict[str, list[str]]:
    """Return the settings that are not equal in all configs: dotted key to its value in each."""
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


def flatten(node: object) -> dict[str, str]:
    """Flatten nested dicts and lists: dotted key to the ``repr`` of the leaf."""
    # Some config formats turn a tuple into a list.
    return {
        place: repr(list(value) if isinstance(value, tuple) else value)
        for place, value in leaves(node)
    }
