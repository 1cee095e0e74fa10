"""Trained detectors, built and loaded for inference."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from mmdet.registry import MODELS
from mmengine.model import revert_sync_batchnorm
from torch import nn

from ..errors import ConfigError
from ..files.checkpoints import (
    dataset_meta_of,
    load_checkpoint_safely,
    read_checkpoint_safely,
    weights_in,
)
from ..files.strict_loading import load_strictly
from ..host.patches import patch_detectors
from .distiller import RdimKDDistiller, distilled_student


def student_config(model: Mapping) -> Mapping:
    """Return the config of the plain detector: the student's, if the model is distilled."""
    student = model.get('student', model)
    if 'data_preprocessor' in model and 'data_preprocessor' not in student:
        student = {**student, 'data_preprocessor': model['data_preprocessor']}
    return student


def trained_detector(
    model: Mapping, checkpoint: str, who: str, config: str = 'this config'
) -> nn.Module:
    """Build a detector, without its teacher if it is distilled, and load its weights strictly.

    ``who`` is the owner of the checkpoint, and ``config`` the name of the config, for messages. The
    detector is in eval mode on the CPU.
    """
    weights = load_checkpoint_safely(checkpoint, who)
    patch_detectors()
    detector = revert_sync_batchnorm(MODELS.build(deepcopy(student_config(model))))
    load_strictly(detector, weights, checkpoint, config, who)
    return detector.eval()


def trained_student(model: Mapping, checkpoint: str, who: str) -> RdimKDDistiller:
    """Build a distilled student and load its weights, bases and adapters from a checkpoint.

    It is in eval mode on the CPU, with ``dataset_meta`` from the checkpoint; its teacher is built
    on first use.
    """
    content = read_checkpoint_safely(checkpoint, who)
    weights = weights_in(content, checkpoint, who)
    student = distilled_student(MODELS.build(model))
    load_strictly(student, weights, checkpoint, 'this config', who)
    if 'distill' not in content:
        raise ConfigError(
            f"{who}: checkpoint {checkpoint} has no entry 'distill': it is of a plain or exported "
            f'student; give one that the distilled training wrote.'
        )
    student.distill.restore(content['distill'], f'{who}: checkpoint {checkpoint}')
    student.dataset_meta = dataset_meta_of(content.get('meta') or {})
    return student.eval()
