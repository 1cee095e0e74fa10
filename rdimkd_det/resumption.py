"""What a distilled training must share with the checkpoint that it resumes from."""

from __future__ import annotations

from collections.abc import Mapping

from .distillation import Distillation, SeveralTeachers
from .errors import ConfigError
from .files.checkpoints import fingerprint
from .projections import Projection

# Where the facts stand in a checkpoint's 'meta'.
KEY = 'distillation'


def training_facts(distill: Distillation | SeveralTeachers) -> dict[str, str]:
    """What the bases and adapters of a training were made for.

    Weights and schedules are not among them: they may change on the way.

    Args:
        distill (Distillation | SeveralTeachers): Of the training.

    Returns:
        dict[str, str]: What it is to how it is; a teacher only where its file is at hand.
    """
    facts = {}
    for part in distill.parts:
        of_teacher = fingerprint(part.teacher.checkpoint)
        if of_teacher is not None:
            facts[f'teacher {part.name}'.strip()] = of_teacher
        for tap, loss in part.items():
            where = part.full_name(tap)
            facts[f"projection at '{where}'"] = _kind(loss.projections[0])
            facts[f"normalize at '{where}'"] = str(loss.normalize)
    return facts


def _kind(projection: Projection) -> str:
    dim = getattr(projection, 'dim', projection.basis.shape[1])
    return f'{type(projection).__name__}, dim {dim}'


def check_same_training(meta: Mapping, facts: Mapping[str, str]) -> None:
    """Check that a checkpoint is of this training.

    Args:
        meta (Mapping): The checkpoint's; one of an earlier version holds no facts.
        facts (Mapping[str, str]): This training's, from :func:`training_facts`.

    Raises:
        ConfigError: A fact differs; names it.
    """
    of_checkpoint = meta.get(KEY) or {}
    for what, value in facts.items():
        earlier = of_checkpoint.get(what, value)
        if earlier != value:
            raise ConfigError(
                f'DistillHook: the checkpoint was made with another teacher or other losses than '
                f'this config; resume with the config of its run. Its {what} was {earlier}, here '
                f'it is {value}.'
            )
