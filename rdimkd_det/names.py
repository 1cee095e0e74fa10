"""Misspelled names, and what was probably meant."""

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
from .signatures import parameters, refused_option

# What an exception's line is cut to.
LONGEST = 400
# Packages whose names are told apart without a scope: their registries are mmdet's and above.
PACKAGES = ('mmdet', 'mmcv', 'mmengine', 'rdimkd_det')
# The key by which mmengine knows an entry of a base `mmdet::...` or `rdimkd_det::...`.
SCOPE = '_scope_'


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message: '; did you mean 'x'?', or nothing where nothing is near."""
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
    """Check that a config entry has no option that its class does not take.

    Args:
        where (str): Its place in the config.
        options (Iterable[str]): The names of the options.
        builder (type): The class.
        others (Iterable[str]): Keys that are not for the class. Defaults to 'type'.
        passed_to (Callable, optional): What it hands other options on to. Defaults to None: any
            option will do for a class that hands on.

    Raises:
        ConfigError: One is unknown, see :func:`check_names`.
    """
    known, hands_on = parameters(builder)
    if hands_on and passed_to is not None:
        more, hands_on = parameters(passed_to)
        known += more
    if not hands_on:
        check_names(f'{where} ({builder.__name__})', options, (*dict.fromkeys(known), *others))


def check_names(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Check that a config entry has no other keys than the known ones, and its scope.

    Args:
        where (str): Its place in the config.
        names (Iterable[str]): Its keys.
        known (Iterable[str]): Those that there are.

    Raises:
        ConfigError: One is unknown; suggests the nearest, or lists them.
    """
    for name in sorted(set(names) - {SCOPE, *known}, key=str):
        hint = did_you_mean(name, known) or f'; it has {", ".join(known)}.'
        raise ConfigError(f"{where} has no option '{name}'{hint}")


def check_type(entry: object, where: str, registry: Registry, known: Iterable[str]) -> type:
    """Check that a config entry names a registered type.

    Args:
        entry (object): The entry, which should be a dict with a 'type'.
        where (str): Its place in the config.
        registry (Registry): Where the type should be.
        known (Iterable[str]): Types that make sense there, to suggest.

    Returns:
        type: The class.

    Raises:
        ConfigError: It does not; suggests the nearest name.
    """
    known = list(known)
    name = entry.get('type') if isinstance(entry, Mapping) else None
    if not isinstance(name, (str, type)):
        raise ConfigError(
            f"{where} must be a dict with a type, e.g. '{known[0]}'; got {reprlib.repr(entry)}."
        )
    try:
        found = registry.get(name) if isinstance(name, str) else name
    except Exception:  # of the import of a name with dots, and of ''
        found = None
    if found is None:
        listed = f'; there are {", ".join(known)}.' if len(known) < 10 else '.'
        hint = did_you_mean(name, known) or listed
        raise ConfigError(f"{where}: unknown type '{name}'{hint}")
    return found


def type_name(entry: Mapping) -> str:
    """The name of a config entry's type, which is a registered name, a dotted path or a class.

    Nothing is imported for it, so that it may be asked of a stranger's config.

    Returns:
        str: E.g. 'Resize', or 'theirs.Resize' of a package that is none of :data:`PACKAGES`.
    """
    kind = entry.get('type')
    path = f'{kind.__module__}.{kind.__name__}' if hasattr(kind, '__name__') else str(kind)
    package, _, rest = path.partition('.')
    if not rest:  # no scope before the name
        package = entry.get(SCOPE) or 'mmdet'
    name = path.rpartition('.')[2]
    return name if package in PACKAGES else f'{package}.{name}'


def explain(error: Exception) -> str:
    """An exception of the host as one line, with what a misspelled name probably meant."""
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
    line = textwrap.shorten(line, LONGEST, placeholder=' ...')  # it may show a whole config
    return line + did_you_mean(*refused) if refused else line


def registered(registry: Registry) -> list[str]:
    """Names of all types in one of mmdet's registries and in mmengine's above it, sorted."""
    registries = [registry] if registry.parent is None else [registry, registry.parent]
    return sorted({name for each in registries for name in each.module_dict})


def _registered_names() -> list[str]:
    registries = [r for r in vars(mmdet.registry).values() if isinstance(r, Registry)]
    return sorted({name for registry in registries for name in registered(registry)})
