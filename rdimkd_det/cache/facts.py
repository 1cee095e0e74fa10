"""What a cache depends on besides the images: the teacher and the projections, as plain facts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from urllib.parse import urlparse

from ..errors import ConfigError
from ..files.checkpoints import local_path
from ..files.whole import sha256_of
from ..names import type_name
from .images import as_json
from .store import TeacherCache


def model_facts(model: Mapping) -> dict:
    """The parts of a teacher's config that make its feature maps.

    Args:
        model (Mapping): Model config of the teacher.

    Returns:
        dict: Name of the fact to JSON types.
    """
    return {
        f"{part} of the teacher's config": as_json(_without_initialization(model.get(part)))
        for part in ('backbone', 'neck', 'data_preprocessor')
    }


def projection_facts(losses: Mapping[str, Mapping], teacher_taps: Mapping[str, str]) -> dict:
    """The projections, by the tapped module of the teacher.

    Args:
        losses (Mapping[str, Mapping]): Tap of the student to the config of its loss.
        teacher_taps (Mapping[str, str]): Tap of the student to the teacher's.

    Raises:
        ConfigError: Two losses have the same maps of the teacher.
    """
    if len(set(teacher_taps.values())) < len(teacher_taps):
        raise ConfigError(
            'teacher cache: two losses tap the same module of the teacher; a cache holds one '
            'projection of each, so drop one of them or train with the live teacher.'
        )
    facts = {}
    for tap, loss in losses.items():
        projection = dict(loss.get('projection') or {})
        projection['type'] = type_name(projection)
        facts[f"projection at '{teacher_taps[tap]}'"] = as_json(projection)
    return facts


def checkpoint_facts(checkpoint: str) -> dict:
    """Name and SHA-256 of a checkpoint; the latter is None where the file is not on this machine.

    Args:
        checkpoint (str): Path or URL.
    """
    name = Path(urlparse(checkpoint).path).name
    path = local_path(checkpoint)
    return {'checkpoint': name, 'weights': sha256_of(path) if path.is_file() else None}


def check_facts(cache: TeacherCache, given: Mapping) -> None:
    """Check that a cache serves a training.

    A training without flips may use a cache with flipped entries. Weights are compared by their
    hash where both sides know it, else by the name of the file.

    Args:
        cache (TeacherCache): The cache.
        given (Mapping): Facts of the training, all or some.

    Raises:
        ConfigError: One differs; names it.
    """
    facts = cache.about['facts']
    ignored = {'flip'} if given.get('flip') is False else set()
    hashes_known = given.get('weights') is not None and facts['weights'] is not None
    ignored.add('checkpoint' if hashes_known else 'weights')
    for what in [what for what in given if what not in ignored]:
        if facts.get(what) != given[what]:
            cached, wanted = _first_difference(facts.get(what), given[what])
            raise ConfigError(
                f'teacher cache {cache.directory} was made with other {what}: {cached}; this '
                f'config has {wanted}. Change the config, or make another cache for it.'
            )


def _first_difference(one: object, other: object) -> tuple[object, object]:
    """The first items in which two lists differ; of anything else, the two."""
    if not (isinstance(one, list) and isinstance(other, list)):
        return one, other
    return next((a, b) for a, b in zip_longest(one, other, fillvalue='nothing') if a != b)


def _without_initialization(entry: object) -> object:
    """Without what is said about initial weights: the checkpoint replaces them."""
    if not isinstance(entry, Mapping):
        return entry
    return {
        key: _without_initialization(value)
        for key, value in entry.items()
        if key not in ('init_cfg', 'pretrained')
    }
