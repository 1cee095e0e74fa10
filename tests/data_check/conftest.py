"""Small data sets to look at."""

import pytest
from looked_at import Data


@pytest.fixture
def data(tmp_path):
    data = Data(tmp_path)
    assert data.look('train', 'val', 'test') == []
    return data
