"""Trained detectors, ready to be shown images."""

from __future__ import annotations

from collections.abc import Mapping

from mmdet.registry import MODELS
from mmengine.model import revert_sync_batchnorm
from torch import nn

from .checkpoints import load_checkpoint_safely
from .errors import ConfigError


def student_config(model: Mapping) -> Mapping:
    """Config of the plain detector: of a distilled one, its student."""
    return model['student'] if 'losses' in model and 'student' in model else model


def trained_detector(model: Mapping, checkpoint: str, who: str) -> nn.Module:
    """Build a detector, without its teacher if it is distilled, and load its weights.

    Args:
        model (Mapping): Config of the model.
        checkpoint (str): Path or URL of its weights.
        who (str): Whose checkpoint it is, for messages.

    Returns:
        nn.Module: In evaluation mode, on the CPU.

    Raises:
        ConfigError: The checkpoint cannot be read, or is of another architecture.
    """
    weights = load_checkpoint_safely(checkpoint, who)
    detector = revert_sync_batchnorm(MODELS.build(student_config(model)))
    load_weights(detector, weights, checkpoint, who)
    return detector.eval()


def load_weights(detector: nn.Module, weights: Mapping, checkpoint: str, who: str) -> None:
    """Load weights that must be the detector's, all of them.

    Raises:
        ConfigError: They are of another architecture.
    """
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        own = detector.state_dict()
        matching = sum(
            key in weights and weights[key].shape == value.shape for key, value in own.items()
        )
        raise ConfigError(
            f'{who}: checkpoint {checkpoint} is not of this config: {matching} of {len(own)} keys '
            f'match; give the config that it was trained with.'
        ) from error
