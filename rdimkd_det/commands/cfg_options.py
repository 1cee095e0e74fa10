"""``--cfg-options``: overrides of a config on a command line."""

from __future__ import annotations

import re

from mmengine.config import DictAction

SPACE = '\0'  # replaces a space that mmengine would drop; no command line can contain it


class OptionsAction(DictAction):
    """mmengine's ``DictAction``, but spaces inside a value are kept; mmengine 0.10.7 drops them."""

    @staticmethod
    def _parse_iterable(val: str) -> list | tuple | object:
        val = val.strip()
        if ',' in val or val.strip('\'"').startswith(('[', '(')):  # a list: trim its items
            val = re.sub(r'\s*([,()\[\]])\s*', r'\1', val)
        return _with_spaces(DictAction._parse_iterable(val.replace(' ', SPACE)))


def _with_spaces(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_with_spaces, value))
    return value.replace(SPACE, ' ') if isinstance(value, str) else value
