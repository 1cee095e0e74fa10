"""Fixtures for all tests; the functions that they return are defined in ``detectors.py``.

These are ``small_config(name, **options)``, ``random_batch(...)`` and
``teacher_files(tmp_path, config)``. Code outside of pytest imports them from ``detectors``.
"""

import signal
from functools import lru_cache
from unittest import mock

import detectors
import pytest
import torch
import yapf.yapflib.yapf_api


@pytest.fixture(scope='session', autouse=True)
def config_texts_are_formatted_once():
    """Cache the formatting of configs; mmengine repeats it per file, at more cost than the run."""
    original = yapf.yapflib.yapf_api.FormatCode
    format_once = lru_cache(lambda text, style: original(text, style_config=dict(style)))

    def format_code(text, style_config, **_):
        return format_once(text, tuple(style_config.items()))

    of_onedl = mock.patch('yapf.yapflib.yapf_api.FormatCode', format_code)
    of_openmmlab = mock.patch('mmengine.config.config.FormatCode', format_code, create=True)
    with of_onedl, of_openmmlab:
        yield


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signals_are_given_back():
    """Restore the signal handlers, which a training that ended in an exception keeps."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def small_config():
    return detectors.small_config


@pytest.fixture
def random_batch():
    return detectors.random_batch


@pytest.fixture
def teacher_files():
    return detectors.teacher_files
