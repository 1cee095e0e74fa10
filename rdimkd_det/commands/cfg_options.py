"""``--cfg-options``: overrides of a config on a command line."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from mmengine.config import DictAction

from ..errors import ConfigError

SPACE = '\0'  # replaces a space that mmengine would drop; no command line can contain it


class OptionsAction(DictAction):
    """mmengine's ``DictAction``, but spaces inside a value are kept; mmengine 0.10.7 drops them.

    What is no KEY=VALUE, or a list without its end, is a ``ConfigError`` instead of a traceback.
    """

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        for given in values:
            name, equals, _ = given.partition('=')
            if not (name and equals) or ' ' in name:
                raise ConfigError(
                    f"{option_string} takes KEY=VALUE, without spaces around '=', got {given!r}; "
                    f'lists as KEY="[a,b]".'
                )
            try:
                super().__call__(parser, namespace, [given], option_string)
            except (AssertionError, ValueError, IndexError, RecursionError) as error:
                raise ConfigError(
                    f'{option_string} {given}: {error}; write lists as KEY="[a,b]".'
                ) from error

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
