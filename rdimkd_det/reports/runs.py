"""Trainings, read from their work directories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ..errors import ConfigError
from ..files.configs import counts_iterations, read_config
from ..files.scalars import History, due_validations, read_history
from ..training.guard import latest_or_none


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A training, finished or not.

    ``name`` is unique among the runs of a report; ``checkpoint`` is the newest intact one.
    """

    name: str
    work_dir: Path
    config: Config
    history: History
    checkpoint: Path | None

    @property
    def distilled(self) -> bool:
        """bool: Whether its student has a teacher."""
        return 'student' in (self.config.get('model') or {})

    @property
    def step_name(self) -> str:
        """str: Unit that validations are counted in: 'epoch' or 'iteration'."""
        return 'iteration' if counts_iterations(self.config) else 'epoch'


def read_runs(work_dirs: Sequence[Path]) -> list[TrainedRun]:
    """Read mmengine's work directories, in the same order, and give each run a unique name."""
    if len({path.resolve() for path in work_dirs}) < len(work_dirs):
        raise ConfigError('a work directory is given twice.')
    names = [path.resolve().name for path in work_dirs]
    if len(set(names)) < len(names):
        names = [str(path) for path in work_dirs]
    return [read_run(path, name) for path, name in zip(work_dirs, names)]


def read_run(work_dir: Path, name: str) -> TrainedRun:
    """Read one work directory; see :func:`read_runs`."""
    if not work_dir.is_dir():
        wrong = 'is a file; give the directory it is in' if work_dir.exists() else 'does not exist'
        raise ConfigError(f'work directory {work_dir} {wrong}.')
    history = read_history(work_dir)
    configs = [work_dir / part / 'vis_data' / 'config.py' for part in history.parts]
    configs = [path for path in configs if path.is_file()]
    if not configs:
        raise ConfigError(
            f'{work_dir} holds no training: mmengine logs one in <time>/vis_data/scalars.json and '
            f'config.py; give the work directory of a training.'
        )
    first, last = (read_config(path, name) for path in (configs[0], configs[-1]))
    for key in ('load_from', 'resume'):  # of one that went on they are the checkpoint of its own
        last[key] = first.get(key)
    if (due := due_validations(last)) is not None:
        history = read_history(work_dir, due=due)
    newest = latest_or_none(work_dir, accept=lambda _: True)  # weights alone are enough
    return TrainedRun(name, work_dir, last, history, newest and Path(newest))
