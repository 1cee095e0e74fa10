"""experiments/memory_growth.py: peak memory for inputs of several sizes."""

import pytest
from runs import call_tool, write_step_config

TOOL = '../experiments/memory_growth.py'


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    return write_step_config(tmp_path_factory.mktemp('config'))


def test_memory__grows_with_the_input(config, capsys):
    call_tool(TOOL, config, '--inputs', '1x256x320', '2x256x320')
    _, *rows = capsys.readouterr().out.splitlines()
    (one, *first), (two, *second) = (row.split() for row in rows)
    assert (one, two) == ('1x256x320', '2x256x320')
    first, second = ([float(peak) for peak in peaks] for peaks in (first, second))
    for small, large in zip(first[:3], second[:3]):  # the steps
        assert 1.5 < large / small < 2.1
    plain, with_teacher, monitored, teacher, loss = second
    assert loss < teacher < plain <= with_teacher <= monitored


def test_memory__wrong_input(config, capsys):
    with pytest.raises(SystemExit, match='2'):
        call_tool(TOOL, config, '--inputs', '128x160')
    assert "invalid numbers value: '128x160'" in capsys.readouterr().err
