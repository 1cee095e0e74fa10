"""Description of a training: its config, its work directory, and what decides its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
# Seconds of an iteration on digits, on one core of an ordinary machine.
PACES = {'teacher': 0.79, 'plain': 0.27, 'distilled': 0.39}


@dataclass(frozen=True, eq=False)
class Run:
    """One training.

    Args:
        kind (str): What is trained; runs of one kind differ in their seeds.
        seed (int): Its random seed.
        work_dir (Path): Its directory.
        epochs (int): Number of epochs.
        epoch_length (int): Iterations per epoch.
        threads (int): CPU threads it may use.
        settings (dict[str, str]): Config overrides that change the result.
        paths (dict[str, str]): Config overrides that say where things are.
        digest (str): Stands for everything that decides the result.
        config (str): Its config file, absolute or below ``ROOT``.
        title (str): For people.
        guessed_pace (float): Seconds per iteration before any is measured.
        needs (tuple[Run, ...]): Trainings that must be done before it starts. Defaults to ().
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
    config: str
    title: str
    guessed_pace: float
    needs: tuple[Run, ...] = ()

    @property
    def iterations(self) -> int:
        """int: Of the whole training."""
        return self.epochs * self.epoch_length

    @property
    def checkpoint(self) -> Path:
        """Path: Its final checkpoint."""
        return self.work_dir / f'epoch_{self.epochs}.pth'


def guess_pace(kind: str, threads: int = 1) -> float:
    """Seconds per iteration of a training on digits: a first guess, replaced by what is measured.

    Args:
        kind (str): 'teacher', 'plain' or 'distilled'.
        threads (int): CPU threads it may use. Defaults to 1.
    """
    return PACES[kind] / threads**0.7  # threads do not help in full


def path_option(path: Path) -> str:
    """A path as a config override, relative to ``ROOT`` where it lies below.

    Raises:
        ConfigError: It holds what the command line of a config would take apart.
    """
    absolute = path.absolute()
    text = str(absolute.relative_to(ROOT) if ROOT in absolute.parents else absolute)
    if set(text) & set(' ,[]()\'"'):
        raise ConfigError(f'{text}: blanks, commas and brackets cannot be passed to a config.')
    return text
