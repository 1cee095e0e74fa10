"""The input that a pretrained module was trained with, from its own records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..errors import ConfigError

RECORD = 'preprocessor_config.json'  # of transformers


@dataclass(frozen=True)
class KnownInput:
    """Mean and deviation on the scale of 0 to 255, and where they are known from."""

    mean: list[float]
    std: list[float]
    bgr: bool
    origin: str


def known_input(module: nn.Module) -> KnownInput | None:
    """Return the input that a module of timm or transformers records; None if there is none."""
    recorded = getattr(module, 'pretrained_cfg', None)
    if isinstance(recorded, Mapping) and recorded.get('mean') and recorded.get('std'):
        mean, std = ([255 * value for value in recorded[key]] for key in ('mean', 'std'))
        return KnownInput(mean, std, False, "timm's pretrained_cfg")
    path = _record_of(getattr(module, 'name_or_path', None))
    return None if path is None else _read(path)


def _record_of(name: object) -> Path | None:
    """Return the record in a directory as ``save_pretrained`` writes it, or in the hub's cache."""
    if not isinstance(name, str) or not name:
        return None
    if Path(name).is_dir():
        return Path(name, RECORD) if Path(name, RECORD).is_file() else None
    try:
        from transformers.utils import cached_file

        found = cached_file(name, RECORD)
    except (ImportError, OSError, ValueError):
        return None
    return None if found is None else Path(found)


def _read(path: Path) -> KnownInput:
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
        # Pixels are first multiplied by the factor, then normalised.
        factor = record.get('rescale_factor', 1 / 255) if record.get('do_rescale', True) else 1
        normalized = record.get('do_normalize', True)
        mean, std = (
            [value / factor for value in (record[key] if normalized else otherwise)]
            for key, otherwise in (('image_mean', [0.0] * 3), ('image_std', [1.0] * 3))
        )
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f'teacher: {path} does not tell image_mean and image_std ({error!r}); give mean, std '
            f'and bgr in model.teacher.'
        ) from error
    return KnownInput(mean, std, record.get('do_flip_channel_order') is True, str(path))
