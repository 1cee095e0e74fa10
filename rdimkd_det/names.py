"""Checks of option and type names in configs, with suggestions for misspelled ones."""

from __future__ import annotations

import re
import reprlib
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

import mmdet.registry
from mmengine.registry import Registry

from .errors import ConfigError
from .registry import find_type
from .signatures import parameters, refused_option

# Maximum length of an exception's line, in characters.
LONGEST = 400
# Packages whose types are found without a scope, in mmdet's registries or their parents.
PACKAGES = ('mmdet', 'mmcv', 'mmengine', 'rdimkd_det')
# The key with which mmengine marks entries of a base `mmdet::...` or `rdimkd_det::...`.
SCOPE = '_scope_'


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of a message, "; did you mean 'x'?", or '' if no known name is close."""
    others = [entry for entry in known if entry != name]
    nearest = get_close_matches(str(name), others, n=1, cutoff=0.7)
    return f"; did you mean '{nearest[0]}'?" if nearest else ''


def check_options(
    where: str,
    options: Iterable[str],
    builder: type,
    others: Iterable[str] = ('type',),
    passed_to: Callable | None = None,
) -> None:
    """Check that a class takes all options of a config entry.

    Args:
        where (str): Place of the entry in the config, for the message.
        options (Iterable[str]): Names of the options.
        builder (type): The class.
        others (Iterable[str]): Additional keys that the class does not take. Defaults to
            ``('type',)``.
        passed_to (Callable, optional): Callable that receives the ``**kwargs`` of the class.
            Defaults to None: a class with ``**kwargs`` then accepts any option.

    Raises:
        ConfigError: An option is unknown, see :func:`check_names`.
    """
    known, takes_others = parameters(builder)
    if takes_others and passed_to is not None:
        more, takes_others = parameters(passed_to)
        known += more
    if not takes_others:
        check_names(f'{where} ({builder.__name__})', options, (*dict.fromkeys(known), *others))


def check_names(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Check that a config entry has only known keys; mmengine's scope key is always allowed.

    Args:
        where (str): Place of the entry in the config, for the message.
        names (Iterable[str]): Keys of the entry.
        known (Iterable[str]): Known keys.

    Raises:
        ConfigError: A key is unknown; the message suggests the closest known key or lists all.
    """
    for name in sorted(set(names) - {SCOPE, *known}, key=str):
        hint = did_you_mean(name, known) or f'; it has {", ".join(known)}.'
        raise ConfigError(f"{where} has no option '{name}'{hint}")


def check_type(entry: object, where: str, registry: Registry, known: Iterable[str]) -> type:
    """Check that a config entry names a registered type.

    Args:
        entry (object): The entry, expected to be a dict with a 'type'.
        where (str): Place of the entry in the config, for the message.
        registry (Registry): Registry of the type.
        known (Iterable[str]): Names of suitable types, to suggest.

    Returns:
        type: The class.

    Raises:
        ConfigError: The entry has no type, or an unknown one; the message suggests a name.
    """
    known = list(known)
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
        hint = did_you_mean(name, known) or listed
        raise ConfigError(f"{where}: unknown type '{name}'{hint}")
    return found


def type_name(entry: Mapping) -> str:
    """Return the name of a config entry's type: a registered name, a dotted path or a class.

    Imports nothing, so it is safe on an untrusted config.

    Returns:
        str: E.g. 'Resize', or 'theirs.Resize' for a package outside :data:`PACKAGES`.
    """
    kind = entry.get('type')
    path = f'{kind.__module__}.{kind.__name__}' if hasattr(kind, '__name__') else str(kind)
    package, _, rest = path.partition('.')
    if not rest:  # no scope before the name
        package = entry.get(SCOPE) or 'mmdet'
    name = path.rpartition('.')[2]
    return name if package in PACKAGES else f'{package}.{name}'


def explain(error: Exception) -> str:
    """Return an exception as one line, with a hint if it is about a misspelled name."""
    # An OSError's first argument is a number; a KeyError's text would be quoted.
    text = str(error if isinstance(error, OSError) or not error.args else error.args[0])
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ['']
    # A data loader's worker sends its traceback as the text of an exception.
    line = lines[-1] if lines[0].startswith('Caught ') else lines[0]
    if len(line) < 20 and error.__traceback__ is not None:  # "AssertionError", "KeyError: 'img'"
        place = traceback.extract_tb(error.__traceback__)[-1]
        line = f'{line} in {Path(place.filename).name}, line {place.lineno}: {place.line}'
    line = f'{type(error).__name__}: {line.strip()}'
    unknown = re.search(r'(.*\b(\w+) is not in the \S+ registry)', line)
    if unknown:
        return unknown[1] + did_you_mean(unknown[2], _registered_names())
    refused = refused_option(error)
    line = textwrap.shorten(line, LONGEST, placeholder=' ...')  # it may contain a whole config
    return line + did_you_mean(*refused) if refused else line


def registered(registry: Registry) -> list[str]:
    """Return the names of all types in one of mmdet's registries and in its parent, sorted."""
    registries = [registry] if registry.parent is None else [registry, registry.parent]
    return sorted({name for each in registries for name in each.module_dict})


def _registered_names() -> list[str]:
    registries = [r for r in vars(mmdet.registry).values() if isinstance(r, Registry)]
    return sorted({name for registry in registries for name in registered(registry)})
