"""Misspelled names, and what was probably meant."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

import mmdet.registry
from mmengine.registry import Registry

from .errors import ConfigError


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message: '; did you mean 'x'?', or nothing where nothing is near."""
    nearest = get_close_matches(str(name), [entry for entry in known if entry != name], n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else ''


def check_options(where: str, options: Iterable[str], builder: type) -> None:
    """Check that a config entry has no option that its class does not take.

    Args:
        where (str): Its place in the config.
        options (Iterable[str]): The names of the options.
        builder (type): The class.

    Raises:
        ConfigError: One is unknown; suggests the nearest, or lists them.
    """
    parameters = inspect.signature(builder).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in options:
        if name not in parameters:
            hint = did_you_mean(name, parameters) or f'; it has {", ".join(parameters)}.'
            raise ConfigError(f"{where}: {builder.__name__} has no option '{name}'{hint}")


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
        raise ConfigError(f"{where} must be a dict with a type, e.g. '{known[0]}'; got {entry!r}.")
    found = registry.get(name) if isinstance(name, str) else name
    if found is None:
        hint = did_you_mean(name, known) or f'; there are {", ".join(known)}.'
        raise ConfigError(f"{where}: unknown type '{name}'{hint}")
    return found


def hint_for(error: Exception) -> str:
    """What a registry's "X is not in the registry" probably meant; else nothing."""
    missing = re.search(r'(\w+) is not in the \S+ registry', str(error))
    if missing is None:
        return ''
    registries = [r for r in vars(mmdet.registry).values() if isinstance(r, Registry)]
    known = {name for r in registries for name in (*r.module_dict, *r.parent.module_dict)}
    return did_you_mean(missing[1], sorted(known))
