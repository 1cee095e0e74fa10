"""What every test may use; the functions themselves live in ``detectors.py``.

Fixtures return functions: ``small_config(name, **options)``, ``random_batch(...)`` and
``teacher_files(tmp_path, config)``. Code outside of pytest imports them from ``detectors``.
"""

import detectors
import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def small_config():
    return detectors.small_config


@pytest.fixture
def random_batch():
    return detectors.random_batch


@pytest.fixture
def teacher_files():
    return detectors.teacher_files
