"""What the operators share: torchvision where it has a kernel, full precision, and gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, wraps

import torch
from mmengine.logging import print_log
from torch import Tensor

PROVIDED: dict[str, Callable] = {}  # the operators, by mmcv's names
DISPATCH_KEYS = {'cpu': 'CPU', 'cuda': 'CUDA'}
# On a CPU plain torch computes these in half of torchvision's time (docs/compatibility.md).
SLOWER_ON_CPU = ('roi_align', '_roi_align_backward', 'deform_conv2d', '_deform_conv2d_backward')


@cache
def torchvision_loads() -> bool:
    """Load torchvision's operators if possible, and log once which operators are in use."""
    loads = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about image codecs, which are not needed
            import torchvision
        loads, source = True, f'torchvision {torchvision.__version__} and plain torch'
    except ImportError:
        source = 'plain torch (torchvision is not installed)'
    # The package index's torchvision beside another build of torch raises RuntimeError ("operator
    # torchvision::nms does not exist"), a missing library OSError.
    except (RuntimeError, OSError) as error:
        source = f'plain torch (torchvision does not load: {str(error).splitlines()[0]})'
    print_log(f'mmcv has no compiled operators; rdimkd_det provides them by {source}.', 'current')
    return loads


@cache
def _has_kernel(name: str, device: str) -> bool:
    key = DISPATCH_KEYS.get(device)
    return (
        torchvision_loads()
        and key is not None
        and torch._C._dispatch_has_kernel_for_dispatch_key(f'torchvision::{name}', key)
    )


def torchvision_operator(name: str, like: Tensor) -> Callable | None:
    """Return torchvision's operator where it is the best for the tensor's device, else None."""
    device = like.device.type
    if (device == 'cpu' and name in SLOWER_ON_CPU) or not _has_kernel(name, device):
        return None
    return getattr(torch.ops.torchvision, name)


def operator(function: Callable) -> Callable:
    """Provide a function as mmcv's operator of its name.

    It runs outside autocast: like compiled operators, it keeps its inputs' precision.
    """

    @wraps(function)
    def run(first: Tensor, *args, **kwargs):
        if torch.onnx.is_in_onnx_export():
            raise NotImplementedError(f"ONNX has no counterpart of mmcv's {function.__name__}")
        torchvision_loads()
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs)

    PROVIDED[function.__name__] = run
    return run


def linear_operators(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Provide ``<name>_forward`` and ``<name>_backward`` of a function linear in its first input.

    The function takes maps, a tensor of where to look, and mmcv's options.
    """

    def forward(maps: Tensor, where: Tensor, output: Tensor, **options) -> None:
        output.copy_(function(*full(maps, where), **options))

    def backward(grad_output: Tensor, where: Tensor, grad_input: Tensor, **options) -> None:
        (where,) = full(where)

        def run(maps: Tensor) -> Tensor:
            return function(maps, where, **options)

        put_gradients(run, [torch.zeros_like(grad_input)], grad_output, grad_input)

    for direction in (forward, backward):
        direction.__name__ = f'{function.__name__}_{direction.__name__}'
        operator(direction)
    return function


def full(*tensors: Tensor) -> list[Tensor]:
    """Return tensors with half precision widened to float32; CPUs and torchvision lack the rest."""
    narrow = (torch.float16, torch.bfloat16)
    return [it.float() if it.dtype in narrow else it for it in tensors]


def put_gradients(
    function: Callable, inputs: Sequence[Tensor], grad_output: Tensor, *outputs: Tensor
) -> None:
    """Copy :func:`gradients` to mmcv's preallocated outputs."""
    for output, found in zip(outputs, gradients(function, inputs, grad_output)):
        output.copy_(found)


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients with respect to a function's inputs, by running the function again."""
    with torch.enable_grad():
        leaves = [it.detach().requires_grad_() for it in full(*inputs)]
        output = function(*leaves)
    if not output.requires_grad:  # nothing was computed, e.g. of no region
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(output, leaves, grad_output.to(output.dtype))
