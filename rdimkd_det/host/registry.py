"""Registration of this package's classes where every OpenMMLab scope finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from mmengine.registry import MODELS, Registry, init_default_scope

from ..errors import ConfigError
from .versions import FITTING, check_package


def register(registry: Registry) -> Callable[[type], type]:
    """Make a decorator that registers a class in one of MMDetection's registries and its root.

    A type is looked up in the config's scope and then in the root, which is mmengine's, but not in
    sibling scopes. So the root makes it known in 'mmyolo' and 'mmrotate' too, and MMDetection's
    registry by its full name, 'mmdet.<class>'.
    """

    def add(cls: type) -> type:
        for each in (registry, registry.root):
            each.register_module(module=cls)
        return cls

    return add


def find_type(entry: Mapping, registry: Registry) -> object:
    """Return the class of a config entry, or None, looked up where it will be built."""
    if not isinstance(entry['type'], str):
        return entry['type']
    with registry.switch_scope_and_registry(entry.get('_scope_')) as found:
        return found.get(entry['type'])


def enter_scope(config: Mapping) -> None:
    """Look types up in a config's scope from now on, as its run will."""
    scope = config.get('default_scope') or 'mmdet'
    import_package(scope)
    init_default_scope(scope)


def import_package(scope: str) -> None:
    """Import what the package of a scope registers; mmengine only warns if that fails."""
    if scope == 'mmdet':
        return
    try:
        for registry in vars(import_module(f'{scope}.registry')).values():
            if isinstance(registry, Registry):
                registry.import_from_location()
    except (ImportError, AssertionError) as error:  # OpenMMLab's assert the versions they need
        missing = getattr(error, 'name', None)
        if missing == f'{scope}.registry' or (missing == scope and scope in MODELS.children):
            return  # a scope of the user's own
        if scope in FITTING:
            check_package(scope)
        raise ConfigError(
            f"default_scope='{scope}': the package {scope} cannot be imported "
            f'({type(error).__name__}: {error}).'
        ) from error
