"""Options that a callable takes, from its signature or the traceback of a rejected option."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Iterator
from types import FrameType, FunctionType

UNEXPECTED = re.compile(r"(\w+)(?:\.(\w+))?\(\) got an unexpected keyword argument '(\w+)'")


def parameters(function: Callable) -> tuple[list[str], bool]:
    """Return the names of a callable's parameters, and whether it has ``**kwargs``."""
    found = inspect.signature(function).parameters.values()
    named = [p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return named, any(p.kind is p.VAR_KEYWORD for p in found)


def refused_option(error: BaseException) -> tuple[str, list[str]] | None:
    """Return the option that a callable rejected, and those that it takes.

    Args:
        error (BaseException): An exception with its traceback.

    Returns:
        tuple[str, list[str]] | None: The rejected option and the callable's options, which are
        empty if the traceback does not show the callable; None for an exception of another kind.
    """
    refused = UNEXPECTED.search(str(error))
    if refused is None:
        return None
    name, method, option = refused.groups()
    known: dict[str, None] = {}
    while error is not None:  # mmengine re-raises, and the original traceback shows the callable
        for frame, _ in traceback.walk_tb(error.__traceback__):
            for found in _named(frame, name):
                called = found if method in (None, '__init__') else getattr(found, method, found)
                known.update(dict.fromkeys(options_of(called)[0]))
        error = error.__context__
    return option, list(known)


def _named(frame: FrameType, name: str) -> Iterator[Callable]:
    """Yield classes and functions of this name in a frame's scope, and the class of ``self``."""
    for value in (*frame.f_locals.values(), *frame.f_globals.values()):
        if isinstance(value, (type, FunctionType)) and value.__name__ == name:
            yield value
    own = type(frame.f_locals.get('self'))
    if name in (base.__name__ for base in own.__mro__):
        yield own


def options_of(kind: Callable) -> tuple[list[str], bool]:
    """Return the options of a callable; for a class with ``**kwargs``, also those of its bases.

    Returns:
        tuple[list[str], bool]: Names of the options, and whether any other option is accepted.
    """
    known: list[str] = []
    for each in getattr(kind, '__mro__', (kind,)):
        try:
            names, takes_others = parameters(each)
        except (TypeError, ValueError):  # implemented in C
            break
        known += names
        if not takes_others:
            return known, False
    return known, True
