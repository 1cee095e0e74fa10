"""Description of one training: its config, its work directory, and what decides its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rdimkd_det.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, eq=False)
class Run:
    """One training.

    Args:
        kind (str): What is trained; runs of one kind differ in their seeds only.
        seed (int): Random seed.
        work_dir (Path): Work directory.
        epochs (int): Number of epochs.
        epoch_length (int): Iterations per epoch.
        threads (int): CPU threads of the training.
        settings (dict[str, str]): Config overrides that change the result.
        paths (dict[str, str]): Config overrides of paths, which do not change the result.
        digest (str): Hash of everything that decides the result.
        config (str): Config file, absolute or relative to ``ROOT``.
        title (str): Display name.
        guessed_pace (float): Seconds per iteration, used until the pace is measured.
        needs (tuple[Run, ...]): Trainings that must be done before this one starts. Defaults to ().
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
        """int: Iterations of the whole training."""
        return self.epochs * self.epoch_length

    @property
    def checkpoint(self) -> Path:
        """Path: The final checkpoint."""
        return self.work_dir / f'epoch_{self.epochs}.pth'


def path_option(path: Path) -> str:
    """Return a path as a config override, relative to ``ROOT`` if it is below.

    Raises:
        ConfigError: The path has blanks, commas, brackets or quotes, which ``--cfg-options`` would
            split or parse.
    """
    absolute = path.absolute()
    text = str(absolute.relative_to(ROOT) if ROOT in absolute.parents else absolute)
    if set(text) & set(' ,[]()\'"'):
        raise ConfigError(f'{text}: blanks, commas and brackets cannot be passed to a config.')
    return text
