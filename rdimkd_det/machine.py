"""The machine and the software versions that measurements depend on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import mmcv
import mmdet
import mmengine
import torch


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, system and versions, by the names that results are written with."""
    return {'processor': processor(), 'cores': count_cores(), **versions()}


def processor() -> str:
    """The processor's model, 'unknown' where the system does not tell."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text(errors='replace').splitlines() if info.is_file() else []
    models = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return models[0] if models else platform.processor() or 'unknown'


def count_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Of the system, Python and the packages that compute."""
    return {
        'system': f'{platform.system()} {platform.machine()}',
        'python': platform.python_version(),
        **{package.__name__: package.__version__ for package in (torch, mmengine, mmcv, mmdet)},
    }
