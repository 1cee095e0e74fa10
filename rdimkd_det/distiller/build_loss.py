"""The loss of one tap, built from its config entry and the measured levels of both models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmdet.registry import MODELS

from ..errors import ConfigError
from ..features import Level
from ..losses import FeatureLoss
from ..options import check_names, check_options, check_type, options_of, type_name
from ..projections import PROJECTIONS


def check_losses(losses: object) -> None:
    """Check the types and option names of losses by tap, and of their projections."""
    if not isinstance(losses, Mapping) or not losses:
        raise ConfigError(f'losses must be a dict, e.g. dict(neck=dict(...)); got {losses!r}.')
    for tap, loss in losses.items():
        where = f'model.losses.{tap}'
        kind = check_type(loss, where, MODELS, ['RdimKDLoss'])
        if not (isinstance(kind, type) and issubclass(kind, FeatureLoss)):
            raise ConfigError(
                f'{where}: {type_name(loss)} is no loss of feature maps; a loss of your own must '
                f'be derived from rdimkd_det.FeatureLoss.'
            )
        known, takes_any = options_of(kind)
        if not takes_any:
            known = [*dict.fromkeys(known), 'type', 'teacher_module']
            check_names(f'{where} ({kind.__name__})', loss, known)
        if not isinstance(loss.get('teacher_module', ''), str):
            raise ConfigError(
                f'{where}.teacher_module must be a path like neck, got {loss["teacher_module"]!r}.'
            )
        if 'projection' in known:
            where, projection = f'{where}.projection', loss.get('projection')
            builder = check_type(projection, where, MODELS, PROJECTIONS.values())
            check_options(where, projection, builder)


def build_tap_loss(where: str, loss: dict, pairs: list[tuple[Level, Level]]) -> FeatureLoss:
    """Build a loss after filling in its channels, number of levels and level names.

    ``where`` is the tap, prefixed with the teacher's name where there are several; the
    ``loss_weight`` may be a dict from stride to weight.
    """
    who = f"{type_name(loss)} at '{where}'"
    strides = [student.stride for student, _ in pairs]
    filled_in = {
        'student_channels': [student.channels for student, _ in pairs],
        'teacher_channels': [teacher.channels for _, teacher in pairs],
        'num_levels': len(pairs),
    }
    for name, value in filled_in.items():
        given = loss.get(name, value)
        listed, expected = (
            list(it) if isinstance(it, Sequence) else [it] * len(pairs) for it in (given, value)
        )
        if listed != expected:
            raise ConfigError(
                f'{who}: {name}={given} contradicts the models, which have '
                f'{value}; leave it out, it is filled in.'
            )
    filled_in['level_names'] = [f'{where}_s{stride}' for stride in strides]
    if isinstance(loss.get('loss_weight'), Mapping):
        filled_in['loss_weight'] = _weights_by_stride(who, loss['loss_weight'], strides)
    try:
        with torch.random.fork_rng(devices=[]):  # the student draws the same numbers without it
            return MODELS.build({**loss, **filled_in})
    except (ConfigError, KeyError, TypeError) as error:
        raise ConfigError(f"loss at '{where}': {error.args[0]}") from error


def _weights_by_stride(who: str, weights: Mapping, strides: list[int]) -> list[float]:
    # As text, since keys in JSON are.
    by_stride = {str(stride): weight for stride, weight in weights.items()}
    if by_stride.keys() != set(map(str, strides)) or len(by_stride) < len(weights):
        raise ConfigError(
            f'{who}: loss_weight has strides {list(weights)}, the common '
            f'levels have {strides}; give one weight for each, 0 to leave a level out.'
        )
    return [by_stride[str(stride)] for stride in strides]
