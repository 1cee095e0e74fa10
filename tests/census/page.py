"""The census as a page: ``docs/census.md``, of what is in ``docs/results/census.json``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import mmcv
import mmdet
import mmengine
import torch
from choice import folders

DOCS = Path(__file__).resolve().parents[2] / 'docs'
RESULTS, PAGE = DOCS / 'results' / 'census.json', DOCS / 'census.md'
NOT_TRIED = 'not tried yet'
VERSIONS = ('mmdet', 'mmcv', 'mmengine', 'torch')
HEAD = """# A detector of each folder

MMDetection ships its configs in folders, one for each method. Of each folder, this takes the
smallest config whose plain detector MMDetection trains on a CPU, with random weights, and trains it
for one step on two small images: plain; as the student of a small RetinaNet with strides from 4 to
128; and as the teacher of that RetinaNet. `distill_config` makes the pairs, at the neck, or at the
backbone where there is no neck. A student works if its own losses are those of the plain step, each
distillation loss is positive and finite, and its backbone learns of the teacher.

This page is written by the tests that do it, `pytest -m census tests/census`: between {first} and
{last}, in {minutes:.0f} minutes of a shared machine, with {versions}.
[pairs.md](pairs.md) has the families that every run of the tests tries, and the special cases.

Of {all} folders, {tried} are tried, and MMDetection trains a detector of {trained} of these here.
{student} of them work as a student, {teacher} as a teacher; each of the others is refused with the
line below.

| Folder | Config | Parameters | As student | As teacher |
|---|---|---|---|---|
"""
REST = """
Backbones (ResNet, Swin), necks and heads have fewer channels than in their config where that makes
a valid detector. A pair is compared at the strides that both have, which the table lists.

## Folders that MMDetection does not train here

| Folder | Config | Its own line |
|---|---|---|
"""


def keep(folder: str, found: dict) -> None:
    """Add a folder's result to the file, and write the page anew."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    packages = (mmdet, mmcv, mmengine, torch)
    versions = {name: package.__version__ for name, package in zip(VERSIONS, packages)}
    results[folder] = {**found, 'date': time.strftime('%Y-%m-%d'), 'versions': versions}
    for name in folders():
        results.setdefault(name, {'plain': NOT_TRIED})
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + '\n')
    PAGE.write_text(page_of(results))


def page_of(results: dict) -> str:
    """Return the page's text."""
    trained = {name: it for name, it in results.items() if it['plain'] == 'trains'}
    tried = [it for it in results.values() if it['plain'] != NOT_TRIED]
    dates = sorted(it['date'] for it in tried)
    works = {
        side: sum(it[side]['outcome'] == 'works' for it in trained.values())
        for side in ('student', 'teacher')
    }
    text = HEAD.format(
        first=dates[0],
        last=dates[-1],
        minutes=sum(it.get('seconds', 0) for it in tried) / 60,
        versions=', '.join(f'{name} {_versions(tried, name)}' for name in VERSIONS),
        trained=len(trained),
        tried=len(tried),
        all=len(results),
        **works,
    )
    for name, it in sorted(trained.items()):
        cells = name, _config(it), f'{it["parameters"] / 1e6:.1f} M'
        text += _row(*cells, _side(it['student']), _side(it['teacher']))
    text += REST
    for name, it in sorted(results.items()):
        if name not in trained:
            text += _row(name, _config(it), _escaped(it['plain']))
    return text


def _versions(tried: list[dict], package: str) -> str:
    return ' and '.join(sorted({it['versions'][package] for it in tried}))


def _row(*cells: str) -> str:
    return f'| {" | ".join(cells)} |\n'


def _config(found: dict) -> str:
    return f'`{Path(found["config"]).stem}`' if 'config' in found else ''


def _side(found: dict) -> str:
    if found['outcome'] == 'works':
        return f'strides {", ".join(map(str, found["strides"]))}'
    return f'{found["outcome"]}: {_escaped(found["line"])}'


def _escaped(line: str) -> str:
    return ' '.join(line.replace('|', '\\|').replace('`', "'").split())
