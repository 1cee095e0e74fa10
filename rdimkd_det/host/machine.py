"""Description of the machine and the package versions, to be stored with results."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import mmcv
import mmdet
import mmengine
import torch


def describe_machine() -> dict[str, str | int]:
    """Return processor, number of cores, system and versions, by the keys used in results."""
    return {'processor': processor(), 'cores': count_cores(), **versions()}


def processor() -> str:
    """Return the processor's model, or 'unknown' if the system does not report it."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text(errors='replace').splitlines() if info.is_file() else []
    models = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return models[0] if models else platform.processor() or 'unknown'


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Return the system and the versions of Python, torch, mmengine, mmcv and mmdet."""
    return {
        'system': f'{platform.system()} {platform.machine()}',
        'python': platform.python_version(),
        **{package.__name__: package.__version__ for package in (torch, mmengine, mmcv, mmdet)},
    }
