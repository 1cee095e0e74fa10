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

from . import alignment, attention, boxes, convolution, focal, rotated, suppression, upsampling

NAME = 'mmcv._ext'
PROVIDED = {
    function.__name__: function
    for function in (
        *alignment.OPERATORS,
        *attention.OPERATORS,
        *boxes.OPERATORS,
        *convolution.OPERATORS,
        *focal.OPERATORS,
        *rotated.OPERATORS,
        *suppression.OPERATORS,
        *upsampling.OPERATORS,
    )
}


class Operators(ModuleType):
    """The module ``mmcv._ext``: any operator exists, those not provided raise when called."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__'):
            raise AttributeError(f'module {NAME!r} has no attribute {name!r}')
        return PROVIDED.get(name) or _missing(name)

    def get_compiler_version(self) -> str:
        return 'none (operators of rdimkd_det)'

    def get_compiling_cuda_version(self) -> str:
        return 'none (operators of rdimkd_det)'


def _missing(name: str) -> Callable[..., NoReturn]:
    def missing(*args, **kwargs) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator '{name}' is not available: this mmcv was installed without compiled "
            f'operators, and rdimkd_det does not provide this one. Install mmcv in place of '
            f'mmcv-lite (it is compiled: a C++ compiler is needed, and for GPUs the CUDA toolkit).'
        )

    return missing


def provide_operators() -> bool:
    """Stand in for ``mmcv._ext`` if mmcv is installed without it; else do nothing.

    Must run before ``mmcv.ops`` is imported.

    Returns:
        bool: Whether mmcv's operators are the ones of this package.
    """
    if NAME not in sys.modules and find_spec(NAME) is None:
        module = Operators(NAME, __doc__)
        module.__spec__ = ModuleSpec(NAME, loader=None, origin=__file__)
        sys.modules[NAME] = module
    return isinstance(sys.modules.get(NAME), Operators)
