"""What a look at the data has found."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import asdict, dataclass, field

from ..errors import ConfigError


@dataclass(frozen=True)
class Finding:
    """One fact about one file of a run's data.

    ``count`` of ``total`` things are so; ``example`` is one of them. An 'error' makes the training
    or its evaluation wrong, a 'warning' may be intended, and 'ok' is only told by preflight.
    """

    severity: str
    topic: str  # 'Boxes', 'Classes', 'Evaluator', 'Images', 'Sizes'
    split: str
    file: str
    text: str
    remedy: str = ''
    count: int = 0
    total: int = 0
    example: str = ''

    @property
    def line(self) -> str:
        """str: The finding as one line."""
        return f'{self.split} data: {self.text}; {self.remedy}.'


@dataclass
class SetSummary:
    """The numbers of one data set: its images, its boxes, and why boxes are lost."""

    split: str
    file: str
    num_images: int
    num_with_objects: int
    num_boxes: int
    num_objects: int
    lost: dict[str, int]  # by reason
    objects_by_class: dict[str, int]
    median_side: float  # square root of the median area of an object, in pixels


@dataclass
class DataReport:
    """All findings, and the numbers of each data set."""

    findings: list[Finding] = field(default_factory=list)
    sets: list[SetSummary] = field(default_factory=list)

    def of(self, severity: str) -> list[Finding]:
        """Return the findings of a severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def raise_errors(self) -> None:
        """Raise the first error as a ``ConfigError`` of one line, which tells how many follow."""
        errors = self.of('error')
        if not errors:
            return
        first, others = errors[0], len(errors) - 1
        more = f' ({others} more: tools/preflight.py CONFIG lists all.)' if others else ''
        raise ConfigError(f'{first.line}{more}')

    def lines(self) -> Iterator[str]:
        """Yield the warnings as lines for a log."""
        for finding in self.of('warning'):
            yield finding.line

    def as_dict(self) -> dict:
        """Return the report as plain data."""
        return asdict(self)


def first_double(values: Iterable[Hashable]) -> Hashable:
    """Return the first value that has occurred before."""
    seen: set = set()
    return next(value for value in values if value in seen or seen.add(value))
