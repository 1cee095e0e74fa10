"""The examples in public docstrings run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize('module', ['functional', 'losses', 'projections', 'schedule', 'wrapping'])
def test_docstring_examples(module):
    results = doctest.testmod(importlib.import_module(f'rdimkd_det.{module}'))
    assert results.attempted > 0 and results.failed == 0
