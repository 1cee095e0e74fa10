"""Check of a resumed training's distillation against the run that wrote the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from ..distiller.distillation import Distillation, SeveralTeachers
from ..errors import ConfigError

# Key of the facts in a checkpoint's 'meta'.
KEY = 'distillation'


def training_facts(distill: Distillation | SeveralTeachers) -> dict[str, str]:
    """Return the facts that the bases and adapters of a training depend on.

    They are the fingerprint of each teacher's checkpoint, if that file is available, its
    ``image_scale``, and :meth:`FeatureLoss.facts` of each tap. Loss weights and schedules may
    change between runs.
    """
    facts = {}
    for part in distill.per_teacher:
        of_teacher = part.teacher.fingerprint()
        if of_teacher is not None and part.shrink.scale > 1:
            of_teacher += f' with image_scale={part.shrink.scale}'
        if of_teacher is not None:
            facts[f'teacher {part.name}'.strip()] = of_teacher
        for tap, loss in part.items():
            for what, value in loss.facts().items():
                facts[f"{what} at '{part.full_name(tap)}'"] = value
    return facts


def check_same_distillation(meta: Mapping, facts: Mapping[str, str]) -> None:
    """Check a checkpoint's 'meta'; facts that it lacks, as those of earlier versions do, pass."""
    of_checkpoint = meta.get(KEY) or {}
    for what, value in facts.items():
        earlier = of_checkpoint.get(what, value)
        if earlier != value:
            raise ConfigError(
                f'DistillHook: the checkpoint was made with another teacher or other losses than '
                f'this config; resume with the config of its run. Its {what} was {earlier}, here '
                f'it is {value}.'
            )
