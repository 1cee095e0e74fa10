"""A folder of images without labels, and trainings that mix it in."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from runs import distilled, fcos, run_config

from rdimkd_det.datasets.mixing import add_unlabelled


def write_images(folder: Path, num: int = 6, size: tuple[int, int] = (48, 80)) -> Path:
    """Write images of noise, every second one in a folder of its own; beside them a text."""
    random = np.random.RandomState(1)
    for index in range(num):
        path = folder / ('inner' if index % 2 else '') / f'{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), random.randint(0, 256, (*size, 3)).astype(np.uint8))
    (folder / 'notes.txt').write_text('no image')
    return folder


def teacher_of(files: Path) -> dict:
    return {
        'config': str(files / 'teacher/teacher.py'),
        'checkpoint': str(files / 'teacher/teacher.pth'),
    }


def mixed_config(files: Path, work_dir: Path, per_batch: int = 2, **options) -> Config:
    """Return the config of a training on 8 images with labels and 6 without, 2 + 2 in a batch.

    ``files`` has 'data' and 'teacher'.
    """
    folder = files / 'unlabelled'
    if not folder.is_dir():
        write_images(folder)
    model = distilled(fcos(), teacher_of(files))
    config = run_config(files / 'data', work_dir, model, **options)
    config.train_dataloader.batch_size = 2
    add_unlabelled(config, str(folder), per_batch)
    return config
