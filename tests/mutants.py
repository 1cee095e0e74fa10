"""Configs with one random mistake each, the same at every call."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

WRONG_VALUES = (None, True, -1, 0, 3, -0.5, 2.5, 'zebra', '', [], [1, 'a'], (2,), {}, {'a': 1})


def mutants(
    config: dict, number: int, below: str = '', seed: int = 0
) -> Iterator[tuple[str, dict]]:
    """Yield a description of each mistake, and the config with it.

    Args:
        config: A config that works, of dicts, lists and plain values.
        number: Number of mistakes.
        below: Key below which mistakes are made, e.g. 'model.losses'. Defaults to everywhere.
        seed: Seed of the random choices.
    """
    chance = random.Random(seed)
    places = [p for p in _places(config) if f'{_name(p)}.'.startswith(below and f'{below}.')]
    seen = set()
    while len(seen) < number:
        place, kind = chance.choice(places), chance.choice(KINDS)
        changed = copy.deepcopy(config)
        parent = changed
        for key in place[:-1]:
            parent = parent[key]
        what = kind(chance, parent, place[-1])
        what = what and f'{_name(place)} {what}'
        if what and what not in seen and changed != config:
            seen.add(what)
            yield what, changed


def _places(node: object, place: tuple = ()) -> Iterator[tuple]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*place, key)
        if isinstance(value, (dict, list)):
            yield from _places(value, (*place, key))


def _name(place: tuple) -> str:
    return '.'.join(map(str, place))


def _other_value(chance: random.Random, parent: dict | list, key: str | int) -> str:
    parent[key] = copy.deepcopy(chance.choice(WRONG_VALUES))
    return f'= {parent[key]!r}'


def _other_sign(chance: random.Random, parent: dict | list, key: str | int) -> str | None:
    if isinstance(parent[key], bool) or not isinstance(parent[key], (int, float)):
        return None
    parent[key] = -parent[key]
    return f'= {parent[key]!r}'


def _gone(chance: random.Random, parent: dict | list, key: str | int) -> str:
    del parent[key]
    return 'is gone'


def _misspelled_key(chance: random.Random, parent: dict | list, key: str | int) -> str | None:
    if not isinstance(key, str):
        return None
    name = _misspell(chance, key)
    parent[name] = parent.pop(key)
    return f'is called {name}'


def _misspelled_value(chance: random.Random, parent: dict | list, key: str | int) -> str | None:
    if not isinstance(parent[key], str) or not parent[key]:
        return None
    parent[key] = _misspell(chance, parent[key])
    return f'= {parent[key]!r}'


def _misspell(chance: random.Random, name: str) -> str:
    position = chance.randrange(len(name))
    return name[:position] + chance.choice(['', name[position] * 2, 'q']) + name[position + 1 :]


KINDS = (_other_value, _other_value, _other_sign, _gone, _misspelled_key, _misspelled_value)
