"""The process of one check: runs it and adds each part to its report at once."""

from __future__ import annotations

import json
import sys
import traceback
from importlib import import_module
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from rdimkd_det.commands import cli
from rdimkd_det.files.atomic import write_text
from rdimkd_det.stopwatch import describe_device

from .task import Task, reason


def main() -> None:
    module, file, task = sys.argv[1:]
    file, task = Path(file), Task(**json.loads(task))
    report = json.loads(file.read_text(encoding='utf-8'))
    MMLogger.get_instance('check').setLevel('ERROR')  # else a line per optimizer parameter
    try:
        report['machine'] = describe_device(torch.device(task.device))
        for part in import_module(module).check(task):
            bars = report['bars'] + part.pop('bars', [])
            report.update(part, bars=bars)
            write_text(file, json.dumps(report, indent=2) + '\n')
    except Exception as error:
        traceback.print_exc()
        report['error'] = reason(error)
    write_text(file, json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    cli.run(main)
