"""Check of a resumed training's distillation against the run that wrote the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from ..distiller.distillation import Distillation, SeveralTeachers
from ..errors import ConfigError
from ..teacher.cache.origin import first_difference

# Key of the facts in a checkpoint's 'meta'.
KEY = 'distillation'
TENSORS = 'tensors '


def training_facts(distill: Distillation | SeveralTeachers) -> dict:
    """Return the facts that the bases and adapters of a training depend on, in JSON types.

    They are the identity of each teacher: a digest of its tensors in use, if they are on this
    machine, its config or the arguments of its module, its input and its ``image_scale``; and
    :meth:`FeatureLoss.facts` of each tap. Loss weights and schedules may change between runs.
    """
    facts = {}
    for part in distill.per_teacher:
        identity = part.teacher.identity()
        weights = identity.pop('weights')
        if weights is not None:
            facts[f'teacher {part.name}'.strip()] = f'{TENSORS}{weights[:16]}'
        identity['image_scale of the teacher'] = part.shrink.scale
        facts.update({f'{what} {part.name}'.strip(): it for what, it in identity.items()})
        for tap, loss in part.items():
            for what, value in loss.facts().items():
                facts[f"{what} at '{part.full_name(tap)}'"] = value
    return facts


def check_same_distillation(meta: Mapping, facts: Mapping) -> None:
    """Check a checkpoint's 'meta'; facts that it lacks, as those of earlier versions do, pass."""
    of_checkpoint = meta.get(KEY) or {}
    for what, value in facts.items():
        earlier = of_checkpoint.get(what, value)
        of_tensors = [str(it).startswith(TENSORS) for it in (earlier, value)]
        if of_tensors == [False, True]:  # of a version that took a digest of the whole file
            continue
        if earlier != value:
            what, earlier, value = first_difference(what, earlier, value)
            raise ConfigError(
                f'DistillHook: the checkpoint was made with another teacher or other losses than '
                f'this config; resume with the config of its run. Its {what} was {earlier}, here '
                f'it is {value}.'
            )
