"""Builds a teacher, live or cached, from its entry in a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import nn

from ..errors import ConfigError
from ..features import OUTPUT
from ..options import check_names, parameters
from .acceleration import Acceleration
from .cache.cached_teacher import CachedTeacher, open_cache
from .cache.origin import projection_facts
from .detector_source import DetectorSource
from .module_source import ModuleSource
from .placement import Placement
from .source import Source
from .teacher import Teacher

# The key of an entry that tells where the network comes from.
SOURCES = {'config': DetectorSource, 'module': ModuleSource}


def build_teacher(
    entry: Mapping,
    losses: Mapping[str, dict],
    preprocessor: nn.Module | None,
    student_strides: Sequence[int] = (),
) -> tuple[Teacher | CachedTeacher, dict[str, str]]:
    """Build a teacher, and return with it the teacher's tap for each tap of the student.

    The key ``teacher_module`` is removed from the configs of the ``losses``, which are by tap of
    the student.
    """
    kind, given, acceleration = _read(entry)
    if entry.get('cache') is None:
        source = kind(**given)
        taps = _taps(losses, source.default_tap)
        of_teacher = list(taps.values())
        placement = Placement(source, of_teacher, student_strides, entry.get('image_scale', 1))
        return Teacher(source, of_teacher, acceleration, preprocessor, placement), taps
    cache = open_cache(entry['cache'])
    taps = _taps(losses, OUTPUT if OUTPUT in cache.about['taps'] else None)
    facts = partial(kind.given_facts, **given)
    projections = projection_facts(losses, taps)
    return CachedTeacher(cache, given.get('checkpoint'), facts, projections), taps


def _read(entry: object) -> tuple[type[Source], dict, Acceleration]:
    """Return the kind of source in an entry, the options given for it, and the acceleration."""
    if not isinstance(entry, Mapping) or not entry.keys() & {*SOURCES, 'cache'}:
        raise ConfigError(
            f'RdimKDDistiller: teacher must be dict(config=..., checkpoint=...); or '
            f'dict(module=...) for any torch module; or, with the maps that '
            f'tools/cache_teacher.py stored, dict(cache=...); got {entry!r}.'
        )
    kinds = {key: kind for key, kind in SOURCES.items() if entry.get(key) is not None}
    if len(kinds) > 1:
        raise ConfigError(f'model.teacher has {" and ".join(kinds)}; give one of them.')
    kind = next(iter(kinds.values()), DetectorSource)
    own, _ = parameters(kind)
    given = {key: entry[key] for key in own if entry.get(key) is not None}
    known = (*own, 'cache', 'image_scale')
    others = {key: entry[key] for key in entry if key not in (*SOURCES, *known)}
    check_names('model.teacher', others, (*known, *Acceleration.__dataclass_fields__))
    return kind, given, Acceleration(**others)


def _taps(losses: Mapping[str, dict], default: str | None) -> dict[str, str]:
    return {tap: loss.pop('teacher_module', default or tap) for tap, loss in losses.items()}
