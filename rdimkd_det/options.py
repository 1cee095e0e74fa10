"""Checks of options and types in configs, with suggestions for misspelled names."""

from __future__ import annotations

import inspect
import math
import re
import reprlib
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import FunctionType

import mmdet.registry
from mmengine.registry import Registry

from .errors import ConfigError
from .host.registry import find_type

# Maximum length of an exception's line, in characters.
LONGEST = 400
# Packages whose types are found without a scope, in mmdet's registries or their parents.
PACKAGES = ('mmdet', 'mmcv', 'mmengine', 'rdimkd_det')
UNEXPECTED = re.compile(r"(\w+)(?:\.(\w+))?\(\) got an unexpected keyword argument '(\w+)'")
# The key with which mmengine marks entries of a base `mmdet::...` or `rdimkd_det::...`.
SCOPE = '_scope_'


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of a message, "; did you mean 'x'?", or '' if no known name is close."""
    others = [entry for entry in known if entry != name]
    nearest = get_close_matches(str(name), others, n=1, cutoff=0.7)
    return f"; did you mean '{nearest[0]}'?" if nearest else ''


def listed(names: Sequence, limit: int = 3) -> str:
    """Return the first names as text, with '...' if there are more."""
    return ', '.join(map(str, names[:limit])) + (', ...' if len(names) > limit else '')


def check_options(
    where: str,
    options: Iterable[str],
    builder: type,
    others: Iterable[str] = ('type',),
    passed_to: Callable | None = None,
) -> None:
    """Check that a class takes all options of a config entry.

    ``where`` is the place of the entry in the config; ``others`` are keys that the class does not
    take. A class with ``**kwargs`` accepts any option, unless ``passed_to`` is the callable that
    receives them.
    """
    known, takes_others = parameters(builder)
    if takes_others and passed_to is not None:
        more, takes_others = parameters(passed_to)
        known += more
    if not takes_others:
        check_names(f'{where} ({builder.__name__})', options, (*dict.fromkeys(known), *others))


def check_names(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Check that a config entry has only known keys; mmengine's scope key is always allowed.

    The message suggests the closest known key or lists all.
    """
    for name in sorted(set(names) - {SCOPE, *known}, key=str):
        hint = did_you_mean(name, known) or f'; it has {", ".join(known)}.'
        raise ConfigError(f"{where} has no option '{name}'{hint}")


def check_type(entry: object, where: str, registry: Registry, known: Iterable[str] = ()) -> type:
    """Check that a config entry names a type of a registry, and return the class.

    ``known`` are the names of suitable types, to suggest; all if there are none.
    """
    known = list(known) or registered(registry)
    name = entry.get('type') if isinstance(entry, Mapping) else None
    if not isinstance(name, (str, type)):
        raise ConfigError(
            f"{where} must be a dict with a type, e.g. '{known[0]}'; got {reprlib.repr(entry)}."
        )
    try:
        found = find_type(entry, registry)
    except Exception:  # the import of a dotted name may raise anything, and '' raises too
        found = None
    if found is None:
        listed = f'; there are {", ".join(known)}.' if len(known) < 10 else '.'
        # Types of the user's own are registered, too, and hosts have hundreds.
        hint = did_you_mean(name, known) or did_you_mean(name, registered(registry)) or listed
        raise ConfigError(f"{where}: unknown type '{name}'{hint}")
    return found


def type_name(entry: Mapping) -> str:
    """Return the name of a config entry's type: a registered name, a dotted path or a class.

    E.g. 'Resize', or 'theirs.Resize' for a package outside :data:`PACKAGES`. Imports nothing, so it
    is safe on an untrusted config.
    """
    kind = entry.get('type')
    path = f'{kind.__module__}.{kind.__name__}' if hasattr(kind, '__name__') else str(kind)
    package, _, rest = path.partition('.')
    if not rest:  # no scope before the name
        package = entry.get(SCOPE) or 'mmdet'
    name = path.rpartition('.')[2]
    return name if package in PACKAGES else f'{package}.{name}'


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an exception in the block into a ``ConfigError`` that begins with ``what``.

    It may be any: each class has its own way to refuse its arguments, and configs are Python. A
    ``ConfigError`` is passed on as it is.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f'{what}: {explain(error)}') from error


def explain(error: Exception) -> str:
    """Return an exception as one line, with a hint if it is about a misspelled name."""
    # An OSError's first argument is a number; a KeyError's text would be quoted.
    text = str(error if isinstance(error, OSError) or not error.args else error.args[0])
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ['']
    # A data loader's worker and TorchScript send a traceback as the text of an exception.
    sent = lines[0].startswith(('Caught ', 'The following operation failed in the TorchScript'))
    line = lines[-1] if sent else lines[0]
    if len(line) < 20 and error.__traceback__ is not None:  # "AssertionError", "KeyError: 'img'"
        place = traceback.extract_tb(error.__traceback__)[-1]
        line = f'{line} in {Path(place.filename).name}, line {place.lineno}: {place.line}'
    name = type(error).__name__
    line = f'{name}: {line.strip().removeprefix(f"{name}: ")}'
    unknown = re.search(r'(.*\b(\w+) is not in the \S+ registry)', line)
    if unknown:
        registries = [r for r in vars(mmdet.registry).values() if isinstance(r, Registry)]
        names = sorted({name for registry in registries for name in registered(registry)})
        return unknown[1] + did_you_mean(unknown[2], names)
    refused = _refused_option(error)
    line = textwrap.shorten(line, LONGEST, placeholder=' ...')  # it may contain a whole config
    return line + did_you_mean(*refused) if refused else line


def registered(registry: Registry) -> list[str]:
    """Return the names of all types in one of mmdet's registries, its root and their children.

    They are sorted; the children are the scopes of other packages, which may be the user's own.
    """
    registries = [registry, registry.root, *registry.root.children.values()]
    return sorted({name for each in registries for name in each.module_dict})


def options_of(kind: Callable) -> tuple[list[str], bool]:
    """Return the options of a callable, and whether it accepts any other.

    For a class with ``**kwargs`` they include those of its bases.
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


def parameters(function: Callable) -> tuple[list[str], bool]:
    """Return the names of a callable's parameters, and whether it has ``**kwargs``."""
    found = inspect.signature(function).parameters.values()
    named = [p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return named, any(p.kind is p.VAR_KEYWORD for p in found)


def _refused_option(error: BaseException) -> tuple[str, list[str]] | None:
    """Return the option that a callable rejected, and those of callables of its name nearby."""
    refused = UNEXPECTED.search(str(error))
    if refused is None:
        return None
    name, method, option = refused.groups()
    known: list[str] = []
    while error is not None:  # mmengine re-raises, and the original traceback shows the callable
        for frame, _ in traceback.walk_tb(error.__traceback__):
            own = type(frame.f_locals.get('self'))
            near = [
                it
                for it in (*frame.f_locals.values(), *frame.f_globals.values())
                if isinstance(it, (type, FunctionType)) and it.__name__ == name
            ]
            near += [own] if name in (base.__name__ for base in own.__mro__) else []
            for found in near:
                called = found if method in (None, '__init__') else getattr(found, method, found)
                known += options_of(called)[0]
        error = error.__context__
    return option, known


def is_whole_number(value: object, least: int) -> bool:
    """Check whether an option is an int (not a bool) of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_amount(value: object) -> bool:
    """Check whether an option is a finite number (not a bool) of 0 or more."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value < math.inf
