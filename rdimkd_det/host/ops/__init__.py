"""Stand-in for ``mmcv._ext``, the compiled operators that ``mmcv-lite`` lacks.

mmcv (2.1.0, OneDL 2.3.6) asks its extension module for functions by name, and its autograd
functions pass them inputs and preallocated outputs. The functions here have the same names and
arguments. They use torchvision's operators where these load and compute the same, else plain torch.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Callable, NoReturn

# Each module adds its operators to PROVIDED.
from . import alignment, attention, boxes, convolution, focal, rotated, suppression, upsampling  # noqa: F401
from .backend import PROVIDED

NAME = 'mmcv._ext'


class Operators(ModuleType):
    """The module ``mmcv._ext``: any operator exists, those not provided raise when called."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__'):
            raise AttributeError(f'module {NAME!r} has no attribute {name!r}')
        return PROVIDED.get(name) or _missing(name)

    def get_compiler_version(self) -> str:
        return 'none (operators of rdimkd_det)'

    get_compiling_cuda_version = get_compiler_version


def _missing(name: str) -> Callable[..., NoReturn]:
    def missing(*args, **kwargs) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator '{name}' is not available: this mmcv was installed without compiled "
            f'operators, and rdimkd_det does not provide this one. Install mmcv in place of '
            f'mmcv-lite (it is compiled: a C++ compiler is needed, and for GPUs the CUDA toolkit).'
        )

    return missing


def provide_operators() -> bool:
    """Stand in for ``mmcv._ext`` if mmcv lacks it, and return whether this package does.

    Must run before ``mmcv.ops`` is imported.
    """
    if NAME not in sys.modules and find_spec(NAME) is None:
        module = Operators(NAME, __doc__)
        module.__spec__ = ModuleSpec(NAME, loader=None, origin=__file__)
        sys.modules[NAME] = module
    return isinstance(sys.modules.get(NAME), Operators)
