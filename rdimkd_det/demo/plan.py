"""The demo's options, and the list of trainings that they give."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from mmengine.config import Config

from ..datasets.digits import VERSION, DigitsOptions
from ..machine import count_cores
from ..trainings import ROOT, Run, data_paths, guess_pace, path_option

CONFIGS = {
    'teacher': 'configs/digits/fcos_r50_teacher.py',
    'plain': 'configs/digits/fcos_r18.py',
    'rdimkd': 'configs/digits/rdimkd_fcos_r50_r18.py',
}
TITLES = {'teacher': 'teacher', 'plain': 'plain student', 'rdimkd': 'RdimKD student'}


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo.

    Args:
        work_dir (Path): Directory of all results. Defaults to 'work_dirs/demo'.
        data (Path): Directory of the digits. Defaults to 'data/digits'.
        seeds (tuple[int, ...]): One plain and one RdimKD student are trained per seed.
            Defaults to (0,).
        jobs (int, optional): Students trained at once. Defaults to one per core.
        digits (DigitsOptions): Options of the data set. Defaults to ``DigitsOptions()``.
        epochs (int, optional): Epochs of every training; None for those of the configs. Defaults
            to None.
    """

    work_dir: Path = Path('work_dirs/demo')
    data: Path = Path('data/digits')
    seeds: tuple[int, ...] = (0,)
    jobs: int | None = None
    digits: DigitsOptions = field(default_factory=DigitsOptions)
    epochs: int | None = None

    @property
    def num_jobs(self) -> int:
        """int: Students trained at once."""
        return min(self.jobs or count_cores(), 2 * len(self.seeds))


def plan_runs(options: DemoOptions) -> list[Run]:
    """List the trainings, the teacher first.

    Args:
        options (DemoOptions): The user's choices.

    Returns:
        list[Run]: One teacher, then a plain and a RdimKD student per seed.
    """
    data = hashlib.sha256(json.dumps([VERSION, asdict(options.digits)]).encode()).hexdigest()
    cores = count_cores()
    teacher = _plan_run('teacher', 0, options, cores, [data])
    threads = max(1, cores // options.num_jobs)
    runs = [teacher]
    for seed in options.seeds:
        runs.append(_plan_run('plain', seed, options, threads, [data]))
        runs.append(_plan_run('rdimkd', seed, options, threads, [data, teacher.digest], teacher))
    return runs


def _plan_run(
    kind: str,
    seed: int,
    options: DemoOptions,
    threads: int,
    ingredients: list[str],
    teacher: Run | None = None,
) -> Run:
    cfg = _read_config(kind)
    threads = min(threads, int(os.environ.get('OMP_NUM_THREADS') or threads))
    settings = {'randomness.seed': str(seed)}
    if options.epochs is not None:
        settings['train_cfg.max_epochs'] = str(options.epochs)
    paths = data_paths(options.data)
    if teacher is not None:
        paths['model.teacher.checkpoint'] = path_option(teacher.checkpoint)
    content = json.dumps([cfg.to_dict(), settings, *ingredients], sort_keys=True, default=str)
    return Run(
        kind=kind,
        seed=seed,
        work_dir=options.work_dir / (kind if kind == 'teacher' else f'{kind}_seed{seed}'),
        epochs=options.epochs or cfg.train_cfg.max_epochs,
        epoch_length=math.ceil(options.digits.num_train / cfg.train_dataloader.batch_size),
        threads=threads,
        settings=settings,
        paths=paths,
        digest=hashlib.sha256(content.encode()).hexdigest(),
        config=CONFIGS[kind],
        title=TITLES[kind] + ('' if kind == 'teacher' else f', seed {seed}'),
        guessed_pace=guess_pace('distilled' if kind == 'rdimkd' else kind, threads),
    )


@cache
def _read_config(kind: str) -> Config:
    return Config.fromfile(ROOT / CONFIGS[kind])
