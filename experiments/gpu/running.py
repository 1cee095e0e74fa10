"""Runs each check in a process of its own, so that none can stop the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from rdimkd_det.files.atomic import write_text

from .task import ROOT, Task

# Name of each check, in their order, and the module whose `check(task)` yields parts of its report.
CHECKS = {
    name: f'experiments.gpu.{name}'
    for name in ('versions', 'tests', 'operators', 'precision', 'teachers', 'step', 'losses',
                 'ranks', 'training')
}  # fmt: skip
# No check but the last may take more of the time that remains.
SHARE = 1 / 3


def run_checks(
    checks: Mapping[str, str], out: Path, task: Task, head: dict, on_report: Callable = print
) -> list[dict]:
    """Run checks one after the other; each leaves ``<name>.json`` and ``<name>.log`` in a folder.

    Args:
        checks (Mapping[str, str]): Name to module of each, like :data:`CHECKS`.
        out (Path): Existing folder.
        task (Task): What each gets; its ``seconds`` are those of all together.
        head (dict): First entries of each report.
        on_report (Callable): Called with each report. Defaults to ``print``.

    Returns:
        list[dict]: The reports.
    """
    end, reports = time.monotonic() + task.seconds, []
    for number, (name, module) in enumerate(checks.items(), start=1):
        file, start = out / f'{name}.json', time.monotonic()
        seconds = (end - start) * (1 if number == len(checks) else SHARE)
        report = {'check': name, **head, 'bars': []}
        write_text(file, json.dumps(report))
        error = _wait(module, file, replace(task, seconds=max(seconds, 0)))
        report = json.loads(file.read_text(encoding='utf-8'))
        if error:
            report['error'] = error
        report['seconds'] = round(time.monotonic() - start, 1)
        report['ok'] = 'error' not in report and all(it['ok'] is not False for it in report['bars'])
        write_text(file, json.dumps(report, indent=2) + '\n')
        reports.append(report)
        on_report(report)
    return reports


def _wait(module: str, file: Path, task: Task) -> str | None:
    """Run a check's process, and return why it did not end by itself, if so."""
    env = dict(os.environ)
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), env.get('PYTHONPATH')]))
    if task.small:
        env['CUDA_VISIBLE_DEVICES'] = ''
    command = [sys.executable, '-m', 'experiments.gpu.child', module, str(file)]
    with file.with_suffix('.log').open('wb') as log:
        process = subprocess.Popen(
            [*command, json.dumps(asdict(task))],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children can be killed with it
        )
        try:
            status = process.wait(task.seconds)
        except subprocess.TimeoutExpired:
            return f'stopped after {task.seconds:.0f} s; give more --minutes, or see the log'
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status < 0:
        return f'ended by {signal.Signals(-status).name}; see the log'
    return f'ended with status {status}; see the log' if status else None
