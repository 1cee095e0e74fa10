"""`make setup` (tools/bootstrap.py) and `.ci/run`, without the network."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from command_lines import without_outer_make
from runs import REPOSITORY

from rdimkd_det.host.versions import FITTING

# No server answers at this address.
OFFLINE = {'PIP_CONFIG_FILE': os.devnull, 'PIP_INDEX_URL': 'http://127.0.0.1:9', 'PIP_RETRIES': '1'}
NO_COMPILER = {'CXX': 'no-such-compiler'}


@pytest.fixture
def clone(tmp_path):
    """Return a folder with what `make setup` reads."""
    for name in ('Makefile', 'setup.py', 'tools/bootstrap.py', 'requirements', '.ci/run'):
        target = tmp_path / 'clone' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy2
        copy(REPOSITORY / name, target)
    return tmp_path / 'clone'


@pytest.fixture
def bootstrap(clone):
    """Return tools/bootstrap.py of the clone as a module."""
    spec = importlib.util.spec_from_file_location('bootstrap', clone / 'tools/bootstrap.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(clone: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `make setup` with this test's Python and without the outer make's options."""
    environment = without_outer_make({**os.environ, **OFFLINE, **environment})
    command = ['make', 'setup', f'PYTHON={sys.executable}', *options]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)


def message(done: subprocess.CompletedProcess) -> str:
    """Return the one line of a setup that failed."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith('make')]
    assert len(lines) == 1 and lines[0].startswith('setup: '), done.stderr
    return lines[0]


@pytest.mark.parametrize(
    'option, expected',
    [
        ('STACK=mmlab', 'STACK must be openmmlab or onedl, got mmlab.'),
        ('OPS=fast', 'OPS must be torch or compiled, got fast.'),
        ('OPS=compiled', 'no C++ compiler (no-such-compiler): install one, e.g. apt-get install'),
    ],
)
def test_setup__refuses_before_anything_is_made(clone, option, expected):
    assert expected in message(make(clone, option, **NO_COMPILER))
    assert not [*clone.glob('.venv*')]


def test_setup__needs_no_compiler_and_says_that_the_index_did_not_answer(clone):
    line = message(make(clone, **NO_COMPILER))
    assert 'PyTorch and build tools failed: the package index gave no complete answer' in line
    assert 'see .venv/setup.log' in line and (clone / '.venv/setup.log').is_file()


@pytest.mark.parametrize('stack', ['openmmlab', 'onedl'])
def test_setup__does_nothing_if_complete(clone, bootstrap, stack):
    folder = clone / {'openmmlab': '.venv', 'onedl': '.venv-onedl'}[stack]
    venv.create(folder)
    (folder / 'rdimkd_det.stamp').write_text(bootstrap.fingerprint(stack, 'torch'))
    done = make(clone, f'STACK={stack}')
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_setup__each_choice_has_its_environment(clone):
    for options in ((), ('STACK=onedl',), ('OPS=compiled',), ('STACK=onedl', 'OPS=compiled')):
        # `make test` runs this, too: a make of its own says nothing of folders.
        command = ['make', '-n', '--no-print-directory', 'setup', *options]
        env = {key: it for key, it in os.environ.items() if not key.startswith('MAKE')}
        done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
        folder, stack, operators = done.stdout.split('bootstrap.py ')[1].split()
        assert folder == '.venv' + ''.join(f'-{option.split("=")[1]}' for option in options)
        assert (stack == 'onedl') == ('STACK=onedl' in options)
        assert (operators == 'compiled') == ('OPS=compiled' in options)


def test_python__outside_of_the_range(bootstrap, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, 'NEWEST', (3, 8))
    with pytest.raises(SystemExit) as end:
        bootstrap.check_python('openmmlab')
    assert end.value.code == 2
    assert (
        f'is Python {sys.version.split()[0]}: install Python 3.9 to 3.8' in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    'log, expected',
    [
        ('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device',
         'the disk is full'),
        ('x.cpp:1: error: y\nc++: fatal error: Killed signal terminated program cc1plus',
         'MAX_JOBS=1'),
        ("ERROR: Wheel 'torch' located at /tmp/torch-2.13.0-cp311.whl is invalid.",
         'the package index gave no complete answer'),
        ("ReadTimeoutError: HTTPSConnectionPool(...): Read timed out.",
         'the package index gave no complete answer'),
        ("ModuleNotFoundError: No module named 'mmcv._ext'", 'pip cache remove'),
        ('OSError: CUDA_HOME environment variable is not set.', 'leave out OPS=compiled'),
        ('nms.cpp:3:10: fatal error: torch/x.h: No such file', 'nms.cpp:3:10: fatal error: torch'),
        ('something else\nlast line', 'last line'),
    ],
)  # fmt: skip
def test_diagnosis__one_line(bootstrap, log, expected):
    assert expected in bootstrap.diagnosis(log)
    assert '\n' not in bootstrap.diagnosis(log)


@pytest.mark.parametrize('operators, extension', [('torch', True), ('compiled', False)])
def test_operators__others_are_removed(bootstrap, tmp_path, monkeypatch, operators, extension):
    """An environment of an older setup has mmcv compiled; mmcv-lite must not go over it."""
    steps = []
    monkeypatch.setattr(bootstrap, 'step', lambda what, command, log: steps.append(command))
    mmcv = tmp_path / 'lib/python3.11/site-packages/mmcv'
    bootstrap.remove_other_operators(tmp_path, operators, tmp_path / 'log')
    mmcv.mkdir(parents=True)
    if not extension:
        (mmcv / '_ext.so').touch()
    bootstrap.remove_other_operators(tmp_path, operators, tmp_path / 'log')
    assert steps == []
    if extension:
        (mmcv / '_ext.so').touch()
    else:
        (mmcv / '_ext.so').unlink()
    bootstrap.remove_other_operators(tmp_path, operators, tmp_path / 'log')
    assert len(steps) == 1
    assert {'uninstall', '-y', 'mmcv', 'mmcv-lite', 'onedl-mmcv'} <= {*map(str, steps[0])}


def test_pins__hold_every_distribution_of_mmdetection():
    """A package without a version anywhere could change under us."""
    text = (REPOSITORY / 'setup.py').read_text()
    pinned = dict(re.findall(r"'((?:onedl-)?mm[a-z-]+)==([\d.]+)'", text))
    assert {*pinned} == {
        *('mmengine', 'mmcv', 'mmcv-lite', 'mmdet'),
        *('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'),
        *('mmyolo-open', 'mmrotate-dev', 'onedl-mmrotate'),
    }
    told = [fitting for family in FITTING.values() for fitting in family.values()]
    assert all(f"'{fitting}'" in text for fitting in told)  # to who has another version
    constraints = (REPOSITORY / 'requirements/constraints-onedl.txt').read_text()
    assert f'onedl-mmcv=={pinned["onedl-mmcv"]}\n' in constraints


@pytest.mark.parametrize('compiler', ['no-such-compiler', 'true'])
def test_ci__skips_compiled_operators_without_a_compiler(clone, tmp_path, compiler):
    """The make of this test prints its arguments; `true` is a program, as a compiler is."""
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin/make').write_text('#!/bin/sh\necho make "$@"\n')
    (tmp_path / 'bin/make').chmod(0o755)
    environment = {
        **os.environ,
        'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}',
        'PYTHON': sys.executable,
        'CXX': compiler,
    }
    done = subprocess.run(
        ['.ci/run'], cwd=clone, env=environment, capture_output=True, text=True, check=True
    )
    calls, skips = [], []
    for line in done.stdout.splitlines():
        (calls if line.startswith('make ') else skips).append(line)
    assert calls[:3] == ['make lint', 'make smoke STACK=onedl', 'make test']
    if compiler == 'true':
        assert (calls[3:], skips) == (['make smoke OPS=compiled'], [])
    else:
        assert calls[3:] == []
        assert len(skips) == 1 and skips[0].startswith('ci: skip: compiled operators: no C++')
