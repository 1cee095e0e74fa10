"""Runs the tests that are marked `cuda`; without a GPU they are skipped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from .task import ROOT, Task, bar


def check(task: Task) -> Iterator[dict]:
    """Report how many passed, failed and were skipped."""
    tests = (ROOT / 'tests').rglob('test_*.py')
    marked = [str(path) for path in tests if 'mark.cuda' in path.read_text(encoding='utf-8')]
    result = Path(task.folder, 'tests.xml').absolute()
    command = [sys.executable, '-m', 'pytest', '-m', 'cuda', '-q', f'--junitxml={result}']
    subprocess.run([*command, '-p', 'no:cacheprovider', *marked], cwd=ROOT, check=False)
    counts = dict.fromkeys(('tests', 'failures', 'errors', 'skipped'), 0)
    for suite in ElementTree.parse(result).getroot().iter('testsuite'):
        counts = {name: number + int(suite.get(name)) for name, number in counts.items()}
    failed = bar(f'failed, of {counts["tests"]}', counts['failures'] + counts['errors'], 0)
    yield {'bars': [failed, bar('skipped', counts['skipped'], None if task.small else 0)]}
