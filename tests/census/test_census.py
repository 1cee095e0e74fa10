"""The census of MMDetection: a detector of each folder of configs, as student and as teacher.

It takes an hour, so other runs leave it out: ``pytest -m census tests/census`` runs it, and
``-k`` or the name of a test a part of it. It writes ``docs/census.md``.
"""

import json

import pytest
from choice import folders
from page import PAGE, RESULTS, keep, page_of
from trial import FAILS, run_trial


@pytest.mark.census
@pytest.mark.parametrize('folder', folders())
def test_folder__works_or_is_refused_in_a_line(folder):
    found = run_trial(folder)
    keep(folder, found)
    if found['plain'] != 'trains':
        pytest.skip(f'MMDetection does not train it here: {found["plain"]}')
    for side in ('student', 'teacher'):
        assert found[side]['outcome'] != FAILS, found[side]['line']


def test_page__is_that_of_the_results():
    assert PAGE.read_text() == page_of(json.loads(RESULTS.read_text()))
