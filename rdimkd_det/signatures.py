"""Which options a callable takes: by its signature, or by the traceback of one that it refused."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Iterator
from types import FrameType, FunctionType

UNEXPECTED = re.compile(r"(\w+)(?:\.(\w+))?\(\) got an unexpected keyword argument '(\w+)'")


def parameters(function: Callable) -> tuple[list[str], bool]:
    """Names of a function's or class's parameters, and whether it takes any other."""
    found = inspect.signature(function).parameters.values()
    named = [p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return named, any(p.kind is p.VAR_KEYWORD for p in found)


def refused_option(error: BaseException) -> tuple[str, list[str]] | None:
    """The option that a callable of the host refused, and those that it takes.

    Args:
        error (BaseException): An exception with its traceback.

    Returns:
        tuple[str, list[str]] | None: None if it is about something else; no options where the
        traceback does not show the callable.
    """
    refused = UNEXPECTED.search(str(error))
    if refused is None:
        return None
    name, method, option = refused.groups()
    known: dict[str, None] = {}
    while error is not None:  # mmengine raises anew, and the first of them knows most
        for frame, _ in traceback.walk_tb(error.__traceback__):
            for found in _named(frame, name):
                called = found if method in (None, '__init__') else getattr(found, method, found)
                known.update(dict.fromkeys(options_of(called)[0]))
        error = error.__context__
    return option, list(known)


def _named(frame: FrameType, name: str) -> Iterator[Callable]:
    """The classes and functions of a name that a frame could call, and the class that it is in."""
    for value in (*frame.f_locals.values(), *frame.f_globals.values()):
        if isinstance(value, (type, FunctionType)) and value.__name__ == name:
            yield value
    own = type(frame.f_locals.get('self'))
    if name in (base.__name__ for base in own.__mro__):
        yield own


def options_of(kind: Callable) -> tuple[list[str], bool]:
    """Options of a callable, with those of the bases of a class that hands others on to them.

    Returns:
        tuple[list[str], bool]: Their names, and whether it takes any other.
    """
    known: list[str] = []
    for each in getattr(kind, '__mro__', (kind,)):
        try:
            names, takes_others = parameters(each)
        except (TypeError, ValueError):  # written in C
            break
        known += names
        if not takes_others:
            return known, False
    return known, True
