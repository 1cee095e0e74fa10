"""What a check gets, the pair of detectors that it may run, and the lines of its report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config

from rdimkd_det.benchmark.preparation import prepare
from rdimkd_det.benchmark.subject import Subject

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Task:
    """What a check gets.

    Args:
        device (str): 'cuda' or 'cpu'; on a CPU everything runs in small.
        folder (str): Existing folder for temporary files.
        seconds (float): Time until the check is stopped.
        data (str, optional): Folder of a COCO-format data set to train on. Defaults to None.
    """

    device: str
    folder: str
    seconds: float
    data: str | None = None

    @property
    def small(self) -> bool:
        """bool: Whether to run small networks on small images."""
        return self.device == 'cpu'

    def pair(self) -> Config:
        """Return the config of a pair, the flagship if not small; its teacher is random."""
        torch.manual_seed(0)
        name = 'digits/rdimkd_fcos_r50_r18.py' if self.small else 'rdimkd_fcos_r50_r18.py'
        cfg = Config.fromfile(ROOT / 'configs' / name)
        if self.small:
            cfg.model.teacher.config = str(ROOT / cfg.model.teacher.config)
        prepare(cfg, Path(self.folder, 'teacher.pth'))
        return cfg

    def subject(self, side: int) -> Subject:
        """Return the pair with a batch of square images of a side; 96 if small."""
        cfg = self.pair()
        side, batch = (96, 2) if self.small else (side, cfg.train_dataloader.batch_size)
        return Subject(cfg, batch, (side, side), torch.device(self.device))


def bar(name: str, value: float | None, limit: float | None = None, **more: object) -> dict:
    """Return a line of a report: a value, and whether it keeps its limit.

    Args:
        name (str): What was measured.
        value (float, optional): The value; None or one that is not finite misses any limit.
        limit (float, optional): The largest value that is right; None if there is none. Defaults to
            None.
        **more (object): Further entries, e.g. an ``error``.
    """
    value = value if value is not None and math.isfinite(value) else None
    ok = None if limit is None else value is not None and value <= limit
    return {'name': name, 'value': value, 'limit': limit, 'ok': ok, **more}


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of two tensors, relative to the largest expected value."""
    if found.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def reason(error: Exception) -> str:
    """Return an error's type and first line."""
    return f'{type(error).__name__}: {error}'.strip().split('\n')[0][:200]
