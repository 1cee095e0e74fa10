"""The losses as pure tensor maths: no modules, no MMDetection."""

from .distances import (
    ABSOLUTE_EPS,
    RELATIVE_EPS,
    mean_square,
    project,
    rdimkd_loss,
    standardized_loss,
    standardized_losses,
    working_dtype,
)

__all__ = [
    'ABSOLUTE_EPS',
    'RELATIVE_EPS',
    'mean_square',
    'project',
    'rdimkd_loss',
    'standardized_loss',
    'standardized_losses',
    'working_dtype',
]
