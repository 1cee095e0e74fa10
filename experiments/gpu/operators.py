"""Check of mmcv's operators: outputs and gradients on the device, against the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch

from .task import ROOT, Task, bar, difference, reason

LIMIT = 1e-4
# mmcv's compiled operators say so where they have none for a CPU.
ONLY_CUDA = 'implementation for device cpu not found'


def check(task: Task) -> Iterator[dict]:
    """Compare each case of the tests, with the largest relative difference."""
    torch.backends.cudnn.allow_tf32 = False
    sys.path.insert(0, str(ROOT / 'tests/host'))
    from operator_cases import CASES, GPU_CASES

    for name, case in {**CASES, **GPU_CASES}.items():
        expected, on_cpu = _try(case, 'cpu')
        found, error = _try(case, task.device)
        if ONLY_CUDA in (on_cpu or '') and (task.small or not error):
            line = bar(f'{name} (mmcv has none for a CPU to compare with)', None)
        elif error or on_cpu or len(found) != len(expected):
            line = bar(name, None, LIMIT, error=error or on_cpu)
        else:
            line = bar(name, max(map(difference, found, expected), default=0.0), LIMIT)
        yield {'bars': [line]}


def _try(case: Callable, device: str) -> tuple[list[torch.Tensor], str | None]:
    """Return the results of a case, and its error."""
    try:
        with torch.device(device):
            return case(), None
    except Exception as error:
        return [], reason(error)
