"""Where a training ran: the machine and the versions, as far as they bear on its numbers."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmdet')
ONEDL = {'mmengine': 'onedl-mmengine', 'mmcv': 'onedl-mmcv', 'mmdet': 'onedl-mmdetection'}


def count_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, str | int]:
    """Machine and versions, as far as they bear on the numbers."""
    versions = {name: _version(name) for name in PACKAGES}
    system = f'{platform.system()} {platform.machine()}'
    machine = {'processor': _processor(), 'cores': count_cores(), 'system': system}
    return {**machine, 'python': sys.version.split()[0], **versions}


def _version(package: str) -> str:
    for name in (package, ONEDL.get(package, package)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return 'none'


def _processor() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text(errors='replace').splitlines() if info.is_file() else []
    models = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return models[0] if models else platform.processor() or 'unknown'
