"""Fixtures for all tests; most return functions that are defined in ``detectors.py``.

Those are ``small_config(name, **options)``, ``random_batch(...)`` and
``teacher_files(tmp_path, config)``. Code outside of pytest imports them from ``detectors``.
"""

import rdimkd_det  # noqa: F401  # provides mmcv's operators, where they are not compiled

# isort: split
import itertools
import signal
from functools import lru_cache, wraps
from unittest import mock

import detectors
import pytest
import runs
import torch
import yapf.yapflib.yapf_api
from mmengine.registry import DefaultScope
from mmengine.runner import Runner


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


@pytest.fixture(scope='session', autouse=True)
def each_runner_has_a_name():
    """By default mmengine names one by the second; of one name, two share a log and its scalars."""
    original, numbers = Runner.__init__, itertools.count()

    @wraps(original)
    def init(self, *args, experiment_name=None, **kwargs):
        name = experiment_name or f'run{next(numbers)}'
        original(self, *args, experiment_name=name, **kwargs)

    with mock.patch.object(Runner, '__init__', init):
        yield


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def scope_is_given_back(request):
    """Leave MMDetection's scope; of another, mmengine warns on the streams of an earlier test."""
    yield
    current = DefaultScope.get_current_instance()
    if current is not None and current.scope_name != 'mmdet':
        DefaultScope.get_instance(f'after {request.node.nodeid}', scope_name='mmdet')


@pytest.fixture(autouse=True)
def signals_are_given_back():
    """Restore the signal handlers, which a training that ended in an exception keeps."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with a data set and a teacher, which the tests of a module share."""
    folder = tmp_path_factory.mktemp('files')
    runs.write_data(folder / 'data')
    runs.write_teacher(folder / 'teacher')
    return folder


@pytest.fixture
def small_config():
    return detectors.small_config


@pytest.fixture
def random_batch():
    return detectors.random_batch


@pytest.fixture
def teacher_files():
    return detectors.teacher_files


def pytest_collection_modifyitems(config, items):
    """Leave the census out, unless it is asked for."""
    if 'census' in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker('census')]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
