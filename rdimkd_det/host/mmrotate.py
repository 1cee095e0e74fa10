"""Workarounds for MMRotate, each with the versions that need it."""

from __future__ import annotations

import multiprocessing.dummy
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

from ..errors import ConfigError
from .ops import provide_operators

H2RBOX_V2 = 'mmrotate.models.detectors.h2rbox_v2'


def prepare_mmrotate() -> None:
    """Work around what stops MMRotate, once ``mmrotate.models`` is imported; imports nothing.

    MMRotate (1.0.1, OneDL 1.2.1) imports torchvision, which may be missing or not load, for one
    function in one detector, H2RBox-v2. The module here is in that one's place until
    ``mmrotate.models`` asks it for the detector.
    """
    if H2RBOX_V2 not in sys.modules:
        sys.modules[H2RBOX_V2] = ModuleType(H2RBOX_V2)
        sys.modules[H2RBOX_V2].__getattr__ = _load


def _load(name: str) -> object:
    if name.startswith('__'):
        raise AttributeError(name)
    _evaluate_in_threads()
    transforms = SimpleNamespace(functional=SimpleNamespace(vflip=lambda images: images.flip(-2)))
    del sys.modules[H2RBOX_V2]
    torchvision = sys.modules.pop('torchvision', None)
    sys.modules['torchvision'] = SimpleNamespace(transforms=transforms)
    try:
        return getattr(import_module(H2RBOX_V2), name)
    finally:
        del sys.modules['torchvision']
        if torchvision is not None:
            sys.modules['torchvision'] = torchvision


def _evaluate_in_threads() -> None:
    """Let ``DOTAMetric`` find this package's operators.

    MMRotate (1.0.1, OneDL 1.2.1) starts four processes for each evaluation. They import this
    package, if at all, as part of the script that was started, and wait for ever without operators.
    """
    if provide_operators():
        from mmrotate.evaluation.functional import mean_ap

        mean_ap.get_context = lambda method: multiprocessing.dummy


def check_views(student: object) -> None:
    """Check that a student's ``loss()`` sees the images of the batch, as its teacher does."""
    if type(student).__module__.startswith('mmrotate.models.detectors.h2rbox'):
        raise ConfigError(
            f'student: {type(student).__name__} learns from rotated and cropped views of its '
            f'images, which a teacher does not see; take another detector, or use it as teacher.'
        )
