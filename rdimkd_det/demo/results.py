"""The demo's numbers: one row per training, means over seeds, and their provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from ..inference import student_config
from ..progress import format_time
from ..trainings import ROOT, Run
from ..trainings.history import read_history
from .plan import CONFIGS, TITLES

COLUMNS = ('', 'AP', 'AP50', 'AP75', 'parameters', 'training time')
DIGITS = 3  # of an AP; mmdet logs no more


@dataclass(frozen=True)
class Row:
    """Result of a training, or the mean over seeds.

    Args:
        kind (str): 'teacher', 'plain' or 'rdimkd'.
        seed (int | None): Random seed; None for a mean over seeds.
        ap (float): COCO AP in [0, 1].
        ap50 (float): AP at an IoU of 0.5.
        ap75 (float): AP at an IoU of 0.75.
        parameters (int): Parameters of the detector, without those of distillation.
        seconds (float): Training time without validation.
        threads (int): CPU threads of the training.
    """

    kind: str
    seed: int | None
    ap: float
    ap50: float
    ap75: float
    parameters: int
    seconds: float
    threads: int

    @property
    def title(self) -> str:
        """str: Display name."""
        if self.kind == 'teacher':
            return TITLES[self.kind]
        return TITLES[self.kind] + (', mean' if self.seed is None else f', seed {self.seed}')

    @property
    def cells(self) -> tuple[str, ...]:
        """tuple[str, ...]: Texts of the table's cells, in the order of ``COLUMNS``."""
        scores = [f'{score:.{DIGITS}f}' for score in (self.ap, self.ap50, self.ap75)]
        cores = f' ({self.threads}\u00a0{"core" if self.threads == 1 else "cores"})'  # no break
        parameters = f'{self.parameters / 1e6:.2f} M'
        return self.title, *scores, parameters, format_time(self.seconds) + cores


def collect_rows(runs: Sequence[Run]) -> list[Row]:
    """Read the result of each finished training; with several seeds, add the means.

    Args:
        runs (Sequence[Run]): All trainings of the demo.

    Returns:
        list[Row]: One row per run, in their order, then the means.
    """
    parameters = {kind: count_parameters(kind) for kind in CONFIGS}
    rows = []
    for run in runs:
        history = read_history(run.work_dir)
        metrics = history.metrics(run.epochs)
        seconds = history.seconds(run.iterations)
        rows.append(
            Row(run.kind, run.seed, **metrics, parameters=parameters[run.kind], seconds=seconds,
                threads=run.threads)
        )  # fmt: skip
    students = [[row for row in rows if row.kind == kind] for kind in ('plain', 'rdimkd')]
    return rows + [_mean(group) for group in students if len(group) > 1]


def _mean(rows: Sequence[Row]) -> Row:
    mean = {
        name: sum(getattr(row, name) for row in rows) / len(rows)
        for name in ('ap', 'ap50', 'ap75', 'seconds')
    }
    return Row(rows[0].kind, None, parameters=rows[0].parameters, threads=rows[0].threads, **mean)


def count_parameters(kind: str) -> int:
    """Count the parameters of a kind's detector, without those of distillation."""
    register_all_modules(init_default_scope=True)
    model = Config.fromfile(ROOT / CONFIGS[kind]).model
    detector = MODELS.build(student_config(model))
    return sum(parameter.numel() for parameter in detector.parameters())


def gain(rows: Sequence[Row]) -> float:
    """Return the mean AP of the RdimKD students minus that of the plain students."""
    mean = {}
    for kind in ('plain', 'rdimkd'):
        scores = [row.ap for row in rows if row.kind == kind and row.seed is not None]
        mean[kind] = sum(scores) / len(scores)
    return mean['rdimkd'] - mean['plain']


def show_table(rows: Sequence[Row], console: Console) -> None:
    """Print the rows."""
    table = Table(*COLUMNS[:1])
    for column in COLUMNS[1:]:
        table.add_column(column, justify='right', no_wrap=True)
    for row in rows:
        table.add_row(*row.cells, style='bold' if row.kind == 'rdimkd' else None)
    console.print(table)


def summarise(rows: Sequence[Row], provenance: dict) -> dict:
    """Return the content of ``results.json``."""
    return {**provenance, 'gain': round(gain(rows), 4), 'rows': [asdict(row) for row in rows]}
