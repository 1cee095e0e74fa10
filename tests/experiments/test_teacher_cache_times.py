"""experiments/teacher_cache.py: a cached teacher beside the live one, and users' mistakes."""

import re

import pytest
from cached_runs import cached_run, make_cache, write_files
from runs import call_tool

TOOL = '../experiments/teacher_cache.py'


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with data, teacher, a config and its cache."""
    folder = write_files(tmp_path_factory.mktemp('files'))
    make_cache(cached_run(folder, 'config'))
    return folder


def test_benchmark__three_kinds_of_step(files, capsys):
    capsys.readouterr()
    call_tool(TOOL, files / 'config.py', '--steps', 2)
    told = capsys.readouterr().out
    assert 'index of 16 entries' in told and 'first read, with checksums' in told
    shares = dict(re.findall(r'^(plain|live|cached) .* s, (.*) of plain$', told, re.MULTILINE))
    assert list(shares) == ['plain', 'live', 'cached'] and shares['plain'] == '1.000'


def test_benchmark__list_of_one_teacher(files, capsys):
    config = cached_run(files, 'list')
    config.model.teacher = [config.model.teacher]
    config.dump(files / 'list.py')
    capsys.readouterr()
    call_tool(TOOL, files / 'list.py', '--steps', 1)
    assert 'cached' in capsys.readouterr().out


@pytest.mark.parametrize(
    'options, message',
    [
        (['--cfg-options', 'model.teacher.cache=None'], 'has no teacher with a cache'),
        (['--cfg-options', 'model.teacher.cache=none'], 'teacher cache none is not there'),
        (['--steps', 0], '--steps must be 1 or more'),
        (['--cfg-options', 'model.type.x=1'], '--cfg-options: '),
    ],
)
def test_wrong_use(files, capsys, options, message):
    capsys.readouterr()
    with pytest.raises(SystemExit, match='2'):
        call_tool(TOOL, files / 'config.py', *options)
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
