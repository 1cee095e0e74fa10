"""Check of a resumed training's distillation against the run that wrote the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from ..distiller.distillation import Distillation, SeveralTeachers
from ..errors import ConfigError

# Key of the facts in a checkpoint's 'meta'.
KEY = 'distillation'


def training_facts(distill: Distillation | SeveralTeachers) -> dict[str, str]:
    """Return the facts that the bases and adapters of a training depend on.

    Loss weights and schedules are not included, because they may change between runs.

    Args:
        distill (Distillation | SeveralTeachers): Distillation of the training.

    Returns:
        dict[str, str]: Name of a fact to its value: the fingerprint of each teacher's checkpoint,
        if that file is available, and :meth:`FeatureLoss.facts` of each tap.
    """
    facts = {}
    for part in distill.parts:
        of_teacher = part.teacher.fingerprint()
        if of_teacher is not None:
            facts[f'teacher {part.name}'.strip()] = of_teacher
        for tap, loss in part.items():
            for what, value in loss.facts().items():
                facts[f"{what} at '{part.full_name(tap)}'"] = value
    return facts


def check_same_distillation(meta: Mapping, facts: Mapping[str, str]) -> None:
    """Check that a checkpoint belongs to this training.

    Args:
        meta (Mapping): 'meta' of the checkpoint; facts that it lacks, as in checkpoints of earlier
            versions, are not compared.
        facts (Mapping[str, str]): Facts of this training, from :func:`training_facts`.

    Raises:
        ConfigError: A fact differs; the message names it.
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
