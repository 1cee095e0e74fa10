"""Workarounds for MMDetection, each with the versions that need it."""

from __future__ import annotations

import pickle
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

from ..errors import TrainingStoppedError


def allow_config_prefix() -> None:
    """Let ``_base_ = ['rdimkd_det::_base_/distill.py']`` find this package's configs.

    mmengine (0.10.7, OneDL 0.10.12) asserts that the prefix is one of OpenMMLab's packages, looks
    for the config in site-packages, where ``pip install -e`` puts nothing, and would look for the
    classes in the prefix's own registries, while this package registers in MMDetection's.
    """
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE

    MODULE2PACKAGE.setdefault('rdimkd_det', 'rdimkd_det')
    find = Config._get_cfg_path

    @wraps(find)
    def get_cfg_path(path: str, filename: str) -> tuple[str, str | None]:
        own = own_config(path)
        return find(path, filename) if own is None else (own, 'mmdet')

    Config._get_cfg_path = staticmethod(get_cfg_path)


def own_config(name: str) -> str | None:
    """Return the path of a config like 'rdimkd_det::_base_/distill.py'; None for other names."""
    prefix, _, path = name.partition('::')
    if prefix != 'rdimkd_det':
        return None
    installed = Path(__file__).parents[1] / '.mim'
    return str((installed if installed.is_dir() else installed.parents[1]) / 'configs' / path)


def allow_checkpoint_types() -> None:
    """Let ``torch.load(weights_only=True)`` read the data types in mmengine's own checkpoints.

    torch >= 2.6 refuses them by default, so mmengine 0.10.7 cannot resume. Switching the
    protection off would let any checkpoint run code. OneDL's mmengine 0.10.12 allows the same
    types, but falls back to unsafe loading for others.
    """
    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer

    if not hasattr(torch.serialization, 'add_safe_globals'):  # torch < 2.4: nothing to allow
        return
    multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
    dtypes = {type(np.dtype(kind)) for kind in (bool, 'i4', 'i8', 'u1', 'f4', 'f8')}
    of_numpy = [np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar, *dtypes]
    torch.serialization.add_safe_globals([HistoryBuffer, _statistics_method, *of_numpy])


def _statistics_method(owner: object, name: str) -> object:
    """Replace ``getattr`` in mmengine's checkpoints: allow only ``HistoryBuffer``'s statistics."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


# Checkpoints refer to `builtins.getattr`; allowing the real one would allow any attribute access.
_statistics_method.__module__ = 'builtins'
_statistics_method.__qualname__ = _statistics_method.__name__ = 'getattr'


def cuda_autocast_dtype() -> torch.dtype | None:
    """Return the precision of the CUDA autocast, or None outside of one."""
    import torch

    if not torch.is_autocast_enabled():
        return None
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype('cuda')
    return torch.get_autocast_gpu_dtype()  # torch < 2.4


def show_student_in_config() -> None:
    """Let code that reads a detector's config find the student's keys in a distilled one.

    ``init_detector`` (mmdet 3.3.0, OneDL 3.5.1) reads ``config.model.backbone`` of every model.
    A key missing from a distilled model's config is looked up in the student's.
    """
    from mmengine.config import ConfigDict

    from ..options import type_name

    raise_key_error = ConfigDict.__missing__

    def __missing__(self: ConfigDict, name: str) -> object:
        if type_name(self) == 'RdimKDDistiller' and name in (self.get('student') or ()):
            return self['student'][name]
        return raise_key_error(self, name)

    ConfigDict.__missing__ = __missing__


@cache
def patch_detectors() -> None:
    """Work around bugs of mmdet (3.3.0, OneDL 3.5.1) that stop some detectors from running.

    Call it when a model is built, not at import: it imports all of mmdet's models.
    """
    from mmdet.models.dense_heads import SSDHead
    from mmdet.models.layers import SinePositionalEncoding

    # Prediction reads a `loss_cls`, which SSD's head lacks.
    if not hasattr(SSDHead, 'loss_cls'):
        SSDHead.loss_cls = None
    # The DETR family calls `view` on a permuted positional encoding, which fails with the strides
    # that torch 2.13 gives it.
    forward = SinePositionalEncoding.forward

    @wraps(forward)
    def contiguous_forward(self, *args, **kwargs):
        return forward(self, *args, **kwargs).contiguous()

    SinePositionalEncoding.forward = contiguous_forward


@cache
def name_unreadable_images() -> None:
    """Make an unreadable image raise a one-line error that names the file.

    mmcv (2.1.0, OneDL 2.3.6) names it in some errors only: OpenCV's error for an empty file does
    not name it, and a worker's traceback hides the others.
    """
    from mmcv.transforms import LoadImageFromFile

    transform = LoadImageFromFile.transform

    @wraps(transform)
    def transform_or_name(self, results: dict) -> dict | None:
        try:
            return transform(self, results)
        except Exception as error:  # file backends and decoders raise many types
            path = results.get('img_path')
            reason = str(error).strip().split('\n')[-1] or type(error).__name__
            if isinstance(error, FileNotFoundError):
                remedy = 'see data_root and data_prefix of the data set, or remove its entry'
            else:
                remedy = 'repair it, or remove it and its entry'
            raise TrainingStoppedError(
                f'image {path} cannot be read ({reason}); {remedy} in the annotations.'
            ) from error

    LoadImageFromFile.transform = transform_or_name
