"""Time and peak memory of pieces of work, on a CPU or a GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

from .host.machine import processor, versions

WARM_UP = 2


@dataclass(frozen=True)
class Cost:
    """Time and memory of one piece of work."""

    median: float  # of all rounds, in milliseconds
    low: float  # first quartile
    high: float  # third quartile
    memory: int  # peak of PyTorch's allocator in bytes, beyond what it held before


def measure(pieces: Mapping[str, Callable], rounds: int, device: torch.device) -> dict[str, Cost]:
    """Measure pieces of work in turn, so that changes in the machine's load affect all of them.

    ``pieces`` are functions without arguments, by name; the timed rounds follow two of warm-up.
    """
    times: dict[str, list[float]] = {name: [] for name in pieces}
    for number in range(WARM_UP + rounds):
        for name, piece in pieces.items():
            taken = elapsed(piece, device)
            if number >= WARM_UP:
                times[name].append(taken)
    costs = {}
    for name, piece in pieces.items():
        quartiles = torch.tensor(times[name]).quantile(torch.tensor([0.5, 0.25, 0.75])).tolist()
        costs[name] = Cost(*quartiles, peak_memory(piece, device))
    return costs


def elapsed(piece: Callable, device: torch.device) -> float:
    """Return the time that one call takes, in milliseconds."""
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        piece()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end)
    clock = time.process_time if _alone() else time.perf_counter
    start = clock()
    piece()
    return 1000 * (clock() - start)


def _alone() -> bool:
    """Check whether one thread does the work, so that CPU time measures it under any load."""
    return torch.get_num_threads() == 1


def peak_memory(piece: Callable, device: torch.device) -> int:
    """Return the peak memory of PyTorch's allocator in a piece of work, beyond that before.

    On a CPU the allocator's reports to the profiler are summed up. The resident set size would
    count memory that the C library keeps from earlier work, and miss memory that it reuses.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        piece()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # torch 2.13 prints two lines per profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        piece()
    # `profiler.events()` omits memory reports attributed to operators; Kineto's results have all.
    events = profiler.profiler.kineto_results.events()
    reports = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]')
    return max(accumulate((size for _, size in reports), initial=0))


def describe_device(device: torch.device) -> dict[str, str | int | bool | None]:
    """Return the device, the clock, and the settings and versions that affect times."""
    on_gpu = device.type == 'cuda'
    return {
        'device': torch.cuda.get_device_name(device) if on_gpu else processor(),
        'threads': torch.get_num_threads(),
        'clock': 'CUDA events' if on_gpu else 'CPU time' if _alone() else 'wall',
        'cuda': torch.version.cuda,
        'cudnn': torch.backends.cudnn.version(),
        'cudnn.benchmark': torch.backends.cudnn.benchmark,
        'cudnn.allow_tf32': torch.backends.cudnn.allow_tf32,
        'matmul.allow_tf32': torch.backends.cuda.matmul.allow_tf32,
        **versions(),
    }
