"""RdimKD (arXiv 2312.08700): feature distillation in a fixed subspace, for MMDetection."""

from .compat import (
    allow_checkpoint_types,
    allow_config_prefix,
    check_distribution,
    show_student_in_config,
)
from .host.ops import provide_operators

check_distribution()
provide_operators()
allow_checkpoint_types()
allow_config_prefix()
show_student_in_config()

from . import functional  # noqa: E402
from .calibration import fit_projections  # noqa: E402
from .distiller import RdimKDDistiller  # noqa: E402
from .errors import ConfigError  # noqa: E402
from .hooks import DistillHook  # noqa: E402
from .losses import FeatureLoss, RdimKDLoss  # noqa: E402
from .projections import (  # noqa: E402
    AutoencoderProjection,
    IdentityProjection,
    PCAProjection,
    RandomProjection,
)
from .version import __version__  # noqa: E402
from .wrapping import distill_config  # noqa: E402

__all__ = [
    'AutoencoderProjection',
    'ConfigError',
    'DistillHook',
    'FeatureLoss',
    'IdentityProjection',
    'PCAProjection',
    'RandomProjection',
    'RdimKDDistiller',
    'RdimKDLoss',
    '__version__',
    'distill_config',
    'fit_projections',
    'functional',
]
