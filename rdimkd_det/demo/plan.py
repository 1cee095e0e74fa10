"""What the demo trains: its options, and from them the list of trainings."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from mmengine.config import Config

from rdimkd_det.datasets.digits import VERSION, DigitsOptions
from rdimkd_det.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    'teacher': 'configs/digits/fcos_r50_teacher.py',
    'plain': 'configs/digits/fcos_r18.py',
    'rdimkd': 'configs/digits/rdimkd_fcos_r50_r18.py',
}
TITLES = {'teacher': 'teacher', 'plain': 'plain student', 'rdimkd': 'RdimKD student'}
# One iteration on one core of an ordinary machine: a first guess, replaced by what is measured.
SECONDS_PER_ITERATION = {'teacher': 0.79, 'plain': 0.27, 'rdimkd': 0.39}


def count_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class DemoOptions:
    """What the user may choose.

    Args:
        work_dir (Path): Directory of all results. Defaults to 'work_dirs/demo'.
        data (Path): Directory of the digits. Defaults to 'data/digits'.
        seeds (tuple[int, ...]): One plain and one RdimKD student are trained per seed.
            Defaults to (0,).
        jobs (int, optional): Students trained at once. Defaults to one per core.
        digits (DigitsOptions): Of the data set. Defaults to ``DigitsOptions()``.
        epochs (int, optional): For all trainings, in place of the configs'. Defaults to None.
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


@dataclass(frozen=True, eq=False)
class Run:
    """One training.

    Args:
        kind (str): 'teacher', 'plain' or 'rdimkd'.
        seed (int): Its random seed.
        work_dir (Path): Its directory.
        epochs (int): Number of epochs.
        epoch_length (int): Iterations per epoch.
        threads (int): CPU threads it may use.
        settings (dict[str, str]): Config overrides that change the result.
        paths (dict[str, str]): Config overrides that say where things are.
        digest (str): Stands for everything that decides the result.
    """

    kind: str
    seed: int
    work_dir: Path
    epochs: int
    epoch_length: int
    threads: int
    settings: dict[str, str]
    paths: dict[str, str]
    digest: str

    @property
    def title(self) -> str:
        """str: For people."""
        return TITLES[self.kind] + ('' if self.kind == 'teacher' else f', seed {self.seed}')

    @property
    def iterations(self) -> int:
        """int: Of the whole training."""
        return self.epochs * self.epoch_length

    @property
    def checkpoint(self) -> Path:
        """Path: Its final checkpoint."""
        return self.work_dir / f'epoch_{self.epochs}.pth'

    @property
    def guessed_pace(self) -> float:
        """float: Seconds per iteration before any is measured; threads do not help in full."""
        return SECONDS_PER_ITERATION[self.kind] / self.threads**0.7


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
    settings = {'randomness.seed': str(seed)}
    if options.epochs is not None:
        settings['train_cfg.max_epochs'] = str(options.epochs)
    paths = _data_paths(options.data)
    if teacher is not None:
        paths['model.teacher.checkpoint'] = _path_option(teacher.checkpoint)
    content = json.dumps([cfg.to_dict(), settings, *ingredients], sort_keys=True, default=str)
    return Run(
        kind=kind,
        seed=seed,
        work_dir=options.work_dir / (kind if kind == 'teacher' else f'{kind}_seed{seed}'),
        epochs=options.epochs or cfg.train_cfg.max_epochs,
        epoch_length=math.ceil(options.digits.num_train / cfg.train_dataloader.batch_size),
        threads=min(threads, int(os.environ.get('OMP_NUM_THREADS') or threads)),
        settings=settings,
        paths=paths,
        digest=hashlib.sha256(content.encode()).hexdigest(),
    )


@cache
def _read_config(kind: str) -> Config:
    return Config.fromfile(ROOT / CONFIGS[kind])


def _data_paths(data: Path) -> dict[str, str]:
    root = _path_option(data)
    loaders = {f'{split}_dataloader.dataset.data_root': root for split in ('train', 'val', 'test')}
    ann_file = f'{root}/annotations/val.json'
    return {**loaders, **{f'{split}_evaluator.ann_file': ann_file for split in ('val', 'test')}}


def _path_option(path: Path) -> str:
    absolute = path.absolute()
    text = str(absolute.relative_to(ROOT) if ROOT in absolute.parents else absolute)
    if set(text) & set(' ,[]()\'"'):
        raise ConfigError(f'{text}: blanks, commas and brackets cannot be passed to a config.')
    return text
