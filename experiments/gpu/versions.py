"""Check of the device: what it is, and that it multiplies and convolves."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from .task import Task, bar, difference


def check(task: Task) -> Iterator[dict]:
    """Report the GPU and the operators in use; compare a product and a convolution with the CPU."""
    torch.backends.cudnn.allow_tf32 = False
    found = {'operators': sys.modules['mmcv._ext'].get_compiling_cuda_version()}
    if not task.small:
        properties = torch.cuda.get_device_properties(0)
        found.update(gpus=torch.cuda.device_count(), gpu_memory=properties.total_memory,
                     compute_capability=f'{properties.major}.{properties.minor}')  # fmt: skip
    yield found
    images, weight = torch.randn(2, 8, 40, 56), torch.randn(16, 8, 3, 3)
    matrix = images.flatten(2)[0]
    for name, piece, inputs in (('convolution', F.conv2d, (images, weight)),
                                ('matrix product', torch.mm, (matrix, matrix.T))):  # fmt: skip
        value = piece(*(tensor.to(task.device) for tensor in inputs))
        yield {'bars': [bar(f'{name}, against the CPU', difference(value, piece(*inputs)), 1e-4)]}
