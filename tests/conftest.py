"""What every test may use; the functions themselves live in ``detectors.py``.

Fixtures return functions: ``small_config(name, **options)``, ``random_batch(...)`` and
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
    """mmengine formats a run's config for each file that it writes: more work than these runs."""
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
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signals_are_given_back():
    """A training that an exception ends keeps them until the next one comes."""
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
