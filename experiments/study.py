"""`Study`: all experiments on one data set; `Experiment`: one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from rich.console import Console

from rdimkd_det.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Experiment:
    """One row of the tables, trained once per seed.

    Args:
        name (str): Its name on the command line, and of its directory and results.
        title (str): A short description.
        groups (tuple[str, ...]): The tables it appears in, keys of ``Study.groups``; none for a
            teacher.
        base (str): The base config file, relative to the repository.
        changes (dict): Config overrides, dotted key to value. Defaults to none.
        teacher (str, optional): Name of the experiment that trains its teacher, the first if its
            config has several; None if nothing is to be trained. Defaults to None.
        plain (str): Name of the same student without distillation, to compare with. Defaults to
            'plain'.
        rival (str, optional): Name of the same student with PKD's loss, to compare with; None if
            there is none. Defaults to 'pkd'.
        seed (int, optional): A fixed seed, as teachers have, that overrides the requested seeds.
            Defaults to None.
        weights (str, optional): Name of a file beside the data set's directory with the weights
            that the training starts from. Defaults to None.
    """

    name: str
    title: str
    groups: tuple[str, ...]
    base: str
    changes: dict = field(default_factory=dict)
    teacher: str | None = None
    plain: str = 'plain'
    rival: str | None = 'pkd'
    seed: int | None = None
    weights: str | None = None


@dataclass(frozen=True, eq=False)
class Study:
    """The experiments on a data set.

    Args:
        name (str): Name of the data set, and of its folders: here, in ``data`` and in
            ``docs/results``.
        table (Mapping[str, Experiment]): Name to experiment, the teachers included.
        groups (Mapping[str, str]): Group of experiments to the title of its table.
        images (object): The data set: a dataclass of the options that decide its images, of which
            ``num_train`` is their number. Its directory gets ``annotations/val.json`` and what
            the configs name.
        few_images (object): As ``images``, of a data set so small that trying everything is quick.
        version (str): Raised when the same options give other images.
        prepare (Callable): Makes the data set unless it exists; called with its directory, its
            options and the console for a progress bar.
        paces (Mapping[str, float]): Seconds per iteration on one core of a 'teacher', a 'plain' and
            a 'distilled' student, used until they are measured.
        draw (Callable, optional): Draws the results (see ``summary.collect``) to a file.
            Defaults to None.
    """

    name: str
    table: Mapping[str, Experiment]
    groups: Mapping[str, str]
    images: object
    few_images: object
    version: str
    prepare: Callable[[Path, object, Console], None]
    paces: Mapping[str, float]
    draw: Callable[[Mapping, Path], None] | None = None

    @property
    def data(self) -> Path:
        """Path: Directory of the data set, unless the user names one."""
        return Path('data') / self.name

    @property
    def results(self) -> Path:
        """Path: Directory of the results, relative to the repository."""
        return Path('docs/results') / self.name

    @property
    def teachers(self) -> list[Experiment]:
        """list[Experiment]: The experiments that others are taught by."""
        names = {it.teacher for it in self.table.values()}
        return [it for it in self.table.values() if it.name in names]

    def select(self, names: Iterable[str]) -> list[Experiment]:
        """Return experiments by name or group, in the given order, each once.

        Args:
            names (Iterable[str]): Names of experiments and groups; none for all groups.

        Raises:
            ConfigError: A name is neither an experiment nor a group.
        """
        chosen = {}
        for name in list(names) or self.groups:
            found = [it for it in self.table.values() if name == it.name or name in it.groups]
            if not found:
                raise ConfigError(
                    f'{name} is neither an experiment nor a group of them; --list shows all.'
                )
            chosen.update({it.name: it for it in found})
        return list(chosen.values())


def list_studies() -> list[str]:
    """Return the data sets that have a study: the folders with a module of that name."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob('*/study.py'))


def load_study(data_set: str) -> Study:
    """Return the study of a data set, one of :func:`list_studies`."""
    return import_module(f'{__package__}.{data_set}.study').STUDY
