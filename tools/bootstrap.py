"""Make the Makefile's environment: `tools/bootstrap.py VENV {openmmlab,onedl} {torch,compiled}`.

The operators of mmcv are rdimkd_det's, written with torch, or mmcv's own, which are compiled. Needs
only the standard library. Does nothing if the environment is complete, and continues where an
interrupted run stopped. Prints one line and exits with status 2 if something is missing.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MMCV = {
    ('openmmlab', 'torch'): 'mmcv-lite',
    ('openmmlab', 'compiled'): 'mmcv',
    ('onedl', 'torch'): 'onedl-mmcv',
    ('onedl', 'compiled'): 'onedl-mmcv',
}
# Detectors of other packages, which need no compiler.
FAMILIES = {'openmmlab': 'mmyolo,mmrotate', 'onedl': 'onedl-mmrotate'}
# The Python versions that the pinned packages have wheels for.
OLDEST = {'openmmlab': (3, 9), 'onedl': (3, 10)}
NEWEST = (3, 13)
# rdimkd_det supplies the operators when it is imported; compiled ones work before that.
IMPORTS = {
    'torch': 'import cv2, torch, rdimkd_det, mmcv.ops, mmdet; ',
    'compiled': 'import cv2, torch, mmcv.ops, mmdet, rdimkd_det; ',
}
PRINT = "print('torch', torch.__version__, 'mmcv', mmcv.__version__, 'mmdet', mmdet.__version__)"
FIRST_TIME = {'torch': '1 to 4 minutes on 2 cores', 'compiled': '8 minutes on 2 cores'}
COMPILING = '6 minutes on 2 cores'
# setuptools takes these in place of Python's own flags. Without debug information, a file takes two
# thirds of the time; -O1 saves another tenth, a precompiled header nothing.
CFLAGS = '-O2 -g0 -DNDEBUG -fwrapv'
# Patterns in an installer's log, and what they mean; the first match counts.
DIAGNOSES = (
    (r'No space left', 'the disk is full: up to 10 GB are needed'),
    (r'[Kk]illed', 'the machine ended it: if memory ran out, try MAX_JOBS=1 make setup'),
    (
        r"No module named 'mmcv\._ext'",
        "pip's cache holds a wheel of mmcv without operators: call pip cache remove '*mmcv*', "
        'then make again',
    ),
    (
        r'CUDA_HOME environment variable is not set|CUDA was not found|detected CUDA version',
        "install the CUDA toolkit of torch's version, or leave out OPS=compiled",
    ),
    (r'.*: (fatal )?error: .*', None),
    (
        r'Retrying|timed out|IncompleteRead|DO NOT MATCH THE HASHES|No matching distribution|'
        r'located at .* is invalid',
        "the package index gave no complete answer: check the network and pip's settings, then "
        'call make again',
    ),
)


def main() -> None:
    venv, stack, operators = ROOT / sys.argv[1], *sys.argv[2:]
    if stack not in OLDEST:
        fail(f'STACK must be openmmlab or onedl, got {stack}.')
    if operators not in IMPORTS:
        fail(f'OPS must be torch or compiled, got {operators}.')
    if is_ready(venv, stack, operators):
        return
    check_python(stack)
    if operators == 'compiled' and (problem := missing_compiler()):
        fail(problem)
    # The installers inherit the lock, so it is held until the last of them has ended.
    with open(f'{venv}.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f'waiting for another setup of {venv.name} to end ...')
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)
        if not is_ready(venv, stack, operators):
            install(venv, stack, operators)


def is_ready(venv: Path, stack: str, operators: str) -> bool:
    stamp, wanted = venv / 'rdimkd_det.stamp', fingerprint(stack, operators)
    return stamp.is_file() and stamp.read_text() == wanted and has_python(venv)


def fingerprint(stack: str, operators: str) -> str:
    """Return a hash of everything that decides what is installed."""
    digest = hashlib.sha256(f'{stack} {operators} {ROOT}'.encode())
    constraints = ROOT / 'requirements' / 'constraints.txt'
    for path in (constraints, constraints_of(stack), ROOT / 'setup.py', Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def constraints_of(stack: str) -> Path:
    return ROOT / 'requirements' / f'constraints-{stack}.txt'


def has_python(venv: Path) -> bool:
    """Check that the environment has the requested Python; make exports PYTHON only if set."""
    if 'PYTHON' not in os.environ:
        return True
    config, version = venv / 'pyvenv.cfg', 'version = {}.{}.'.format(*sys.version_info)
    return config.is_file() and version in config.read_text()


def check_python(stack: str) -> None:
    if not OLDEST[stack] <= sys.version_info[:2] <= NEWEST:
        oldest, newest = ('.'.join(map(str, version)) for version in (OLDEST[stack], NEWEST))
        fail(
            f'{sys.executable} is Python {sys.version.split()[0]}: install Python {oldest} to '
            f'{newest} and call make PYTHON=python3.x.'
        )


def missing_compiler() -> str | None:
    """Return what compiled operators need and this machine lacks, as one line, or None."""
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if shutil.which(compiler) is None:
        return (
            f'no C++ compiler ({compiler}): install one, e.g. apt-get install build-essential, or '
            f'leave out OPS=compiled.'
        )
    if not Path(sysconfig.get_path('include'), 'Python.h').is_file():
        return (
            "Python's headers (Python.h) are missing: install them, e.g. python3-dev, or leave out "
            'OPS=compiled.'
        )
    return None


def install(venv: Path, stack: str, operators: str) -> None:
    start, mmcv = time.monotonic(), MMCV[stack, operators]
    stamp, python, log = venv / 'rdimkd_det.stamp', venv / 'bin' / 'python', venv / 'setup.log'
    if stamp.is_file():
        say(f'{venv.name} is out of date: updating it.')
        stamp.unlink()
    else:
        say(f'making {venv.name} (about {FIRST_TIME[operators]} the first time) ...')
        forget_incomplete(venv)
    create(venv)
    log.write_text('')
    pip = [python, '-m', 'pip', 'install', '--disable-pip-version-check']
    pip += ['-c', constraints_of(stack)]

    # torch and the build tools first: the setup.py of a compiled mmcv imports them.
    step('PyTorch and build tools', [*pip, 'setuptools', 'wheel', 'ninja', 'torch'], log)
    what = 'MMDetection'
    remove_other_operators(venv, operators, log)
    if operators == 'compiled':
        what += f'; compiles {mmcv} (about {COMPILING}) if pip has no wheel'
    elif stack == 'onedl':
        # It leaves its operators out where it is built without torch, i.e. in isolation. pip's
        # cache cannot tell such a wheel from a compiled one, so this one stays out of it.
        pure = [*pip, '--no-cache-dir', '--no-deps', mmcv]
        step(f'{mmcv} without its operators', pure, log)
    extra = 'openmmlab-compiled' if mmcv == 'mmcv' else stack
    step(what, [*pip, '--no-build-isolation', '-e', f'{ROOT}[{extra},{FAMILIES[stack]},dev]'], log)
    # opencv-python links libGL and X11, which servers and containers lack. The headless package has
    # the same files without windows, so it is always installed over opencv-python.
    headless = 'opencv-python-headless'
    if not all(map(is_whole, infos(venv, headless) or [venv])):
        step('OpenCV without windows', [*pip, '--force-reinstall', '--no-deps', headless], log)
    step('self-check', [python, '-W', 'ignore', '-c', IMPORTS[operators] + PRINT], log)
    stamp.write_text(fingerprint(stack, operators))
    versions = log.read_text().splitlines()[-1]
    say(f'{venv.name} is ready after {minutes(start)}: {versions}')


def remove_other_operators(venv: Path, operators: str, log: Path) -> None:
    """Remove an mmcv that is compiled and should not be, e.g. by an older setup, or vice versa."""
    [mmcv, *_] = [*venv.glob('lib/python3*/site-packages/mmcv'), None]
    if mmcv and any(mmcv.glob('_ext.*')) != (operators == 'compiled'):
        uninstall = [venv / 'bin' / 'python', '-m', 'pip', 'uninstall', '-y', *{*MMCV.values()}]
        step('removing mmcv with other operators', uninstall, log)


def create(venv: Path) -> None:
    """Create the environment, unless a working one of the right Python exists."""
    probe = [venv / 'bin' / 'python', '-m', 'pip', '--version']
    if probe[0].exists() and has_python(venv) and not subprocess.run(probe, **QUIET).returncode:
        return
    command = [sys.executable, '-m', 'venv', '--clear', venv]
    if subprocess.run(command, **QUIET).returncode:
        fail(f'{sys.executable} -m venv failed: install it, e.g. apt-get install python3-venv.')


# close_fds=False lets the child inherit the lock.
QUIET = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False)


def forget_incomplete(venv: Path) -> None:
    """Remove pip's record of each package that an interruption left half-installed."""
    for info in infos(venv, '*'):
        if not is_whole(info):
            shutil.rmtree(info)


def infos(venv: Path, package: str) -> list:
    return [*venv.glob(f'lib/python3*/site-packages/{package.replace("-", "_")}-*.dist-info')]


def is_whole(info: Path) -> bool:
    """Check that every file that pip recorded for a package exists with its recorded size."""
    try:
        with (info / 'RECORD').open(newline='', encoding='utf-8') as record:
            return all(
                (info.parent / name).stat().st_size == int(size)
                for name, _, size in csv.reader(record)
                if size and not name.endswith('.pyc')
            )
    except (OSError, ValueError):
        return False


def step(what: str, command: list, log: Path) -> None:
    """Run a command with its output in the log, and print a sign of life each minute."""
    say(f'{what} ...')
    done = threading.Event()
    threading.Thread(target=sign_of_life, args=(done,), daemon=True).start()
    seen = log.stat().st_size
    # mmcv would start four compilers on any machine.
    environment = {'MAX_JOBS': str(os.cpu_count() or 1), 'CFLAGS': CFLAGS, **os.environ}
    with log.open('a') as output:
        status = subprocess.call(
            list(map(str, command)),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            close_fds=False,
        )
    done.set()
    if status:
        text = log.read_bytes()[seen:].decode(errors='replace').strip()
        if status < 0:
            text += f'\nkilled by signal {-status}'
        fail(f'{what.split(";")[0]} failed: {diagnosis(text)} (see {log.relative_to(ROOT)}).')


def diagnosis(text: str) -> str:
    """Return one line on an installer's log: what went wrong, and the remedy if it is known."""
    for pattern, meaning in DIAGNOSES:
        found = re.search(pattern, text)
        if found:
            return meaning or found.group().strip()
    return (text.splitlines() or ['no output'])[-1].strip()


def sign_of_life(done: threading.Event) -> None:
    start = time.monotonic()
    while not done.wait(60):
        say(f'... {minutes(start)}')


def minutes(start: float) -> str:
    return f'{(time.monotonic() - start) / 60:.1f} min'


def say(message: str) -> None:
    print(f'setup: {message}', flush=True)


def fail(message: str) -> None:
    print(f'setup: {message}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        fail('interrupted; run make again to continue.')
    except OSError as error:
        fail(f'{error}: make the folder writable, or free some disk.')
