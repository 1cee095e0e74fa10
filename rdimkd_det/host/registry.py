"""Registration of this package's classes where every OpenMMLab scope finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mmengine.registry import Registry


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
