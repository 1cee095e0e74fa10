"""Trains a teacher, a plain and a distilled student in the time that remains."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from rdimkd_det.files.scalars import read_history

from ..digits.images import DigitsOptions
from ..digits.making import make_digits
from ..running.pace import logged_pace
from .task import ROOT, Task, bar

CONFIGS = {
    'teacher': 'fcos_r50_teacher.py',
    'plain': 'fcos_r18.py',
    'distilled': 'rdimkd_fcos_r50_r18.py',
}
TEACHER_EPOCHS, MOST_EPOCHS = 8, 24
MARGIN = 1.2  # for validation; a distilled step takes no longer than one of the teacher
RESERVE = 15  # seconds: this process's own start, and its end


def check(task: Task) -> Iterator[dict]:
    """Report AP and losses of each training; the teacher's tells how many epochs are possible."""
    end = time.monotonic() + task.seconds - RESERVE
    folder = Path(task.folder).absolute()
    data, runs = task.data or str(folder / 'digits'), {}
    if task.data is None:
        make_digits(data, DigitsOptions(num_train=32, num_val=8) if task.small else None)
    epochs = 1 if task.small else TEACHER_EPOCHS
    for kind in CONFIGS:
        runs[kind] = run = train(make_config(kind, epochs, task, data), folder / kind)
        limit = None if task.small else 1.0
        yield {'data': task.data or 'digits', 'runs': runs,
               'bars': [bar(f'{kind}, last loss / first', run['loss_ratio'], limit),
                        bar(f'{kind}, AP', run.get('ap'))]}  # fmt: skip
        if kind == 'teacher' and not task.small:
            left = (end - time.monotonic()) / 2 - run['start']
            epochs = int(left / (run['epoch_length'] * run['pace'] * MARGIN))
            epochs = min(max(epochs, 1), MOST_EPOCHS)


def train(cfg: Config, work_dir: Path) -> dict:
    """Run one training, and return its metrics, loss and times in seconds.

    Args:
        cfg (Config): Config of the training.
        work_dir (Path): Work directory; the config is written beside it.
    """
    file, start = work_dir.with_suffix('.py'), time.monotonic()
    cfg.dump(file)
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(file)]
    subprocess.run([*command, '--work-dir', str(work_dir)], cwd=ROOT, check=True)
    seconds, history = time.monotonic() - start, read_history(work_dir)
    pace = logged_pace(history)
    _, losses = history.series('loss')
    ends, epochs = max(1, len(losses) // 5), cfg.train_cfg.max_epochs
    return {
        **(history.metrics() or {}),
        'epochs': epochs,
        'epoch_length': math.ceil(history.iterations / epochs),
        'pace': pace,
        'start': max(seconds - pace * history.iterations, 0),
        'seconds': round(seconds, 1),
        'loss_ratio': sum(losses[-ends:]) / sum(losses[:ends]),
    }


def make_config(kind: str, epochs: int, task: Task, data: str) -> Config:
    """Return the digits config of a training, on a GPU at full width and with AMP.

    Args:
        kind (str): One of :data:`CONFIGS`.
        epochs (int): Number of epochs.
        task (Task): The device, and whether the data are the user's own.
        data (str): Folder of the data set.
    """
    cfg = Config.fromfile(ROOT / 'configs/digits' / CONFIGS[kind])
    cfg.train_cfg.max_epochs = epochs
    cfg.param_scheduler[1].update(end=epochs, T_max=epochs)
    cfg.default_hooks.logger.interval = 1 if task.small else 5
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = f'{data}/'
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'].ann_file = f'{data}/annotations/val.json'
    detector = cfg.model
    if kind == 'distilled':
        detector, folder = cfg.model.student, Path(task.folder).absolute()
        last = f'epoch_{1 if task.small else TEACHER_EPOCHS}.pth'
        cfg.model.teacher = dict(config=str(folder / 'teacher.py'),
                                 checkpoint=str(folder / 'teacher' / last))  # fmt: skip
    if task.small:
        for loader, images in ((cfg.train_dataloader, 32), (cfg.val_dataloader, 8)):
            loader.update(num_workers=0, persistent_workers=False)
            loader.dataset.indices = images
    else:
        _widen(cfg, detector)
    if task.data is not None:
        _use_own_data(cfg, detector, Path(data))
    return cfg


def _widen(cfg: Config, detector: dict) -> None:
    stem = 64 if detector.backbone.depth < 50 else 256
    detector.backbone.base_channels = 64
    detector.neck.update(in_channels=[stem * 2**i for i in range(4)], out_channels=256)
    detector.bbox_head.update(in_channels=256, feat_channels=256)
    if detector is not cfg.model:
        cfg.model.losses.neck.projection.dim = 128
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.optimizer.lr = 1e-3
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=32, num_workers=4)


def _use_own_data(cfg: Config, detector: dict, data: Path) -> None:
    """Point a config to photographs, where boxes are larger than on digits."""
    categories = json.loads((data / 'annotations/train.json').read_text())['categories']
    classes = tuple(category['name'] for category in categories)
    detector.bbox_head.update(
        num_classes=len(classes), regress_ranges=((-1, 96), (96, 192), (192, 1e8))
    )
    detector.test_cfg.max_per_img = 100
    cfg.train_dataloader.batch_size = 8  # such data sets are small
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.update(metainfo=dict(classes=classes), data_prefix=dict(img='images/'))
        for step in dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (512, 512)
