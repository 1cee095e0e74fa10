"""Functions run on the ranks of a gloo process group."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_distributed(function: Callable, folder: Path, world_size: int = 2) -> list:
    """Run ``function(rank)`` on each rank of a gloo group; return the results by rank.

    The processes are forked: they start at once and see the test's own variables.

    Args:
        function: Called with the rank; its result is returned through ``torch.save``.
        folder: A temporary folder.
        world_size: Number of processes.
    """
    context = mp.get_context('fork')
    processes = [
        context.Process(target=_run, args=(function, folder, rank, world_size), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * world_size
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(world_size)]


def _run(function: Callable, folder: Path, rank: int, world_size: int) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    dist.init_process_group(
        'gloo',
        init_method=f'file://{folder}/rendezvous',
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    torch.save(function(rank), folder / f'{rank}.pt')
    if dist.is_initialized():
        dist.destroy_process_group()
