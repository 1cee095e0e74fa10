"""The examples in public docstrings run."""

import doctest
import importlib

import pytest

MODULES = [
    'distiller.monitoring',
    'functional.distances',
    'losses.feature_loss',
    'losses.rdimkd',
    'projections',
    'schedule',
    'wrapping',
]


@pytest.mark.parametrize('module', MODULES)
def test_docstring_examples(module):
    results = doctest.testmod(importlib.import_module(f'rdimkd_det.{module}'))
    assert results.attempted > 0 and results.failed == 0
