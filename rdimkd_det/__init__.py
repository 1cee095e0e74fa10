"""RdimKD (arXiv 2312.08700): feature distillation in a fixed subspace, for MMDetection."""

from .host.versions import check_distribution

check_distribution()

from .host.mmrotate import prepare_mmrotate  # noqa: E402
from .host.ops import provide_operators  # noqa: E402
from .host.patches import (  # noqa: E402
    allow_checkpoint_types,
    allow_config_prefix,
    show_student_in_config,
)

provide_operators()
allow_checkpoint_types()
allow_config_prefix()
show_student_in_config()
prepare_mmrotate()

from . import functional  # noqa: E402
from .datasets import UnlabelledImages  # noqa: E402
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
from .training.calibration import fit_projections  # noqa: E402
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
    'UnlabelledImages',
    '__version__',
    'distill_config',
    'fit_projections',
    'functional',
]
