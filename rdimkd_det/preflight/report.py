"""What preflight found: one line per topic, tables, and what to change."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

LOG_WIDTH = 120
STYLES = {'ok': 'green', 'warning': 'yellow', 'error': 'bold red'}


@dataclass
class Finding:
    """One line of the report: 'ok', 'warning' or 'error', and what to change, '' if nothing."""

    severity: str
    topic: str
    text: str
    remedy: str = ''


@dataclass
class Table:
    """Numbers of the report, as they are printed."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)


@dataclass
class Report:
    """Findings, tables of what is measured and of the data, and ``figures`` for ``--json``."""

    title: str
    findings: list[Finding] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    data_tables: list[Table] = field(default_factory=list)
    figures: dict = field(default_factory=dict)

    def ok(self, topic: str, text: str) -> None:
        """Add a finding that needs no change."""
        self.findings.append(Finding('ok', topic, text))

    def warning(self, topic: str, text: str, remedy: str) -> None:
        """Add a finding that may be intended or a mistake."""
        self.findings.append(Finding('warning', topic, text, remedy))

    def error(self, topic: str, text: str, remedy: str) -> None:
        """Add a finding that must be a mistake."""
        self.findings.append(Finding('error', topic, text, remedy))

    def count(self, severity: str) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def passed(self) -> bool:
        """bool: Whether there is no error."""
        return not self.count('error')

    @property
    def verdict(self) -> str:
        """str: The last line."""
        counts = [
            f'{number} {word}{"s" * (number > 1)}'
            for word in ('error', 'warning')
            if (number := self.count(word))
        ]
        return f'{" and ".join(counts)}: see the lines marked ->.' if counts else 'All is well.'

    def as_dict(self) -> dict:
        """Return the report as plain data."""
        return {'passed': self.passed, **asdict(self)}

    def print(self, console: Console) -> None:
        """Print the report; it is readable without colours, too."""
        # Paths and names of classes are no markup: one like 'pen [blue]' would lose its end.
        show = partial(console.print, markup=False, highlight=False)
        show(self.title, style='bold', soft_wrap=True)
        grid = RichTable.grid(padding=(0, 2))
        for overflow in ('ellipsis', 'ellipsis', 'fold'):  # of a long path the end matters, too
            grid.add_column(overflow=overflow)
        for finding in self.findings:
            text = Text(finding.text)
            if finding.remedy:
                text.append(f'\n-> {finding.remedy}', style='bold')
            grid.add_row(
                Text(f'  {finding.severity}', style=STYLES[finding.severity]), finding.topic, text
            )
        show(grid)
        for table in (*self.tables, *self.data_tables):
            show(f'\n{table.title}', soft_wrap=True)
            show(_drawn(table))
        show()
        show(self.verdict, style='bold')

    def log(self, logger: logging.Logger) -> None:
        """Write the report to a log, as a warning unless all findings are ok."""
        console = Console(file=io.StringIO(), width=LOG_WIDTH, color_system=None)
        self.print(console)
        fine = self.count('ok') == len(self.findings)
        logger.log(logging.INFO if fine else logging.WARNING, console.file.getvalue().rstrip())


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(box=None, padding=(0, 0, 0, 2), header_style='bold')
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify='right' if index else 'left')
    for row in table.rows:
        drawn.add_row(*row)
    return drawn
