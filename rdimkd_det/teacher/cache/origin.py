"""The facts about teacher and projections that a cache and a training run must share."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import ConfigError
from ...files.configs import as_json, leaves
from ...options import type_name
from .store import TeacherCache


def projection_facts(losses: Mapping[str, Mapping], teacher_taps: Mapping[str, str]) -> dict:
    """Return the projection config at each tapped module of the teacher, or say what hinders.

    Both arguments are by tap of the student: configs of losses, and taps of the teacher.
    """
    if len(set(teacher_taps.values())) < len(teacher_taps):
        raise ConfigError(
            'teacher cache: two losses tap the same module of the teacher; a cache holds one '
            'projection of each, so drop one of them or train with the live teacher.'
        )
    facts = {}
    for tap, loss in losses.items():
        if not loss.get('projection'):
            raise ConfigError(
                f"teacher cache: the loss at '{tap}' ({type_name(loss)}) has no projection and "
                f'compares whole maps; a cache holds projected ones, so train with the live '
                f'teacher, without cache=...'
            )
        projection = dict(loss['projection'])
        projection['type'] = type_name(projection)
        facts[f"projection at '{teacher_taps[tap]}'"] = as_json(projection)
    return facts


def check_facts(cache: TeacherCache, given: Mapping) -> None:
    """Check that a cache fits a training run, of which all or some facts are given.

    A run without flips may use a cache with flipped entries. Weights are compared by hash if both
    hashes are known, otherwise by file name.
    """
    facts = cache.about['facts']
    ignored = {'flip'} if given.get('flip') is False else set()
    hashes_known = given.get('weights') is not None and facts['weights'] is not None
    ignored.add('checkpoint' if hashes_known else 'weights')
    for what in [what for what in given if what not in ignored]:
        wanted = _completed(given[what], facts.get(what))
        if facts.get(what) != wanted:
            what, cached, wanted = first_difference(what, facts.get(what), wanted)
            raise ConfigError(
                f'teacher cache {cache.directory} was made with other {what}: {cached}; this '
                f'config has {wanted}. Change the config, or make another cache for it.'
            )


def _completed(given: object, cached: object) -> object:
    """Return a fact with the cached entries where it has None: those that it does not tell."""
    if not (isinstance(given, Mapping) and isinstance(cached, Mapping)):
        return given
    return {key: cached.get(key) if it is None else it for key, it in given.items()}


def first_difference(what: str, one: object, other: object) -> tuple[str, object, object]:
    """Return the first option in which two dicts or lists differ, with its place in ``what``.

    Other values are returned whole.
    """
    if isinstance(one, (Mapping, list)) and isinstance(other, (Mapping, list)):
        before, after = dict(leaves(one)), dict(leaves(other))
        for place in before | after:
            if place and before.get(place) != after.get(place):
                return f'{place} in {what}', before.get(place), after.get(place)
    return what, one, other
