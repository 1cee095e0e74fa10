"""Times and peak memory of pieces of work, on a CPU or a GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

from .machine import processor, versions

WARM_UP = 2


@dataclass(frozen=True)
class Cost:
    """What one piece of work costs.

    Attributes:
        median (float): Milliseconds, of all rounds.
        low (float): Their first quartile.
        high (float): Their third quartile.
        memory (int): Bytes at its peak that PyTorch holds beyond what it held before.
    """

    median: float
    low: float
    high: float
    memory: int


def measure(pieces: Mapping[str, Callable], rounds: int, device: torch.device) -> dict[str, Cost]:
    """Time pieces of work in turn, so that a machine's changing mood strikes all of them.

    Args:
        pieces (Mapping[str, Callable]): Name to a function without arguments.
        rounds (int): How often each is timed, after two rounds of warm-up.
        device (torch.device): Where they work.

    Returns:
        dict[str, Cost]: Name to its cost.
    """
    times: dict[str, list[float]] = {name: [] for name in pieces}
    for number in range(WARM_UP + rounds):
        for name, piece in pieces.items():
            elapsed = _time(piece, device)
            if number >= WARM_UP:
                times[name].append(elapsed)
    costs = {}
    for name, piece in pieces.items():
        quartiles = torch.tensor(times[name]).quantile(torch.tensor([0.5, 0.25, 0.75])).tolist()
        costs[name] = Cost(*quartiles, peak_memory(piece, device))
    return costs


def _time(piece: Callable, device: torch.device) -> float:
    """Milliseconds."""
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
    """Whether CPU time is what the work takes: with one thread, whatever else the machine does."""
    return torch.get_num_threads() == 1


def peak_memory(piece: Callable, device: torch.device) -> int:
    """Bytes that PyTorch's allocator holds at the peak of a piece of work, beyond those before it.

    On a CPU they are summed up from the allocator's own reports to the profiler: the resident set
    would count what the C library keeps of earlier work, and miss what it reuses.

    Args:
        piece (Callable): A function without arguments.
        device (torch.device): Where it works.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        piece()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # torch 2.13 prints two lines a profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        piece()
    # Its list of events leaves out what it books on operators; below are all reports.
    events = profiler.profiler.kineto_results.events()
    reports = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]')
    return max(accumulate((size for _, size in reports), initial=0))


def describe_device(device: torch.device) -> dict[str, str | int | bool | None]:
    """The device, how it is timed, its settings and all versions, as far as they bear on times."""
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
