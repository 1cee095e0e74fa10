"""Make the environment of the Makefile: `python tools/bootstrap.py VENV {openmmlab,onedl}`.

Needs only the standard library. Does nothing if the environment is complete, and continues where an
interrupted run stopped. Prints one line and exits with status 2 if something is missing.
"""

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
MMCV = {'openmmlab': 'mmcv', 'onedl': 'onedl-mmcv'}
# The Python versions that the pinned packages have wheels for.
OLDEST = {'openmmlab': (3, 9), 'onedl': (3, 10)}
NEWEST = (3, 13)
SELF_CHECK = (
    'import cv2, torch, mmcv.ops, mmdet, rdimkd_det; '
    "print('torch', torch.__version__, 'mmcv', mmcv.__version__, 'mmdet', mmdet.__version__)"
)
# Patterns in an installer's log, and what they mean; the first match counts.
DIAGNOSES = (
    (r'No space left', 'the disk is full: up to 10 GB are needed'),
    (r'[Kk]illed', 'the machine ended it: if memory ran out, try MAX_JOBS=1 make setup'),
    (
        r'CUDA_HOME environment variable is not set|CUDA was not found|detected CUDA version',
        "install the CUDA toolkit of torch's version, or build without: "
        'CUDA_VISIBLE_DEVICES= make setup',
    ),
    (r'.*: (fatal )?error: .*', None),
    (
        r'Retrying|timed out|IncompleteRead|DO NOT MATCH THE HASHES|No matching distribution',
        "the package index gave no complete answer: check the network and pip's settings, then "
        'call make again',
    ),
)


def main() -> None:
    venv, stack = ROOT / sys.argv[1], sys.argv[2]
    if stack not in MMCV:
        fail(f'STACK must be openmmlab or onedl, got {stack}.')
    if is_ready(venv, stack):
        return
    check_machine(stack)
    # The installers inherit the lock, so it is held until the last of them has ended.
    with open(f'{venv}.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f'waiting for another setup of {venv.name} to end ...')
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)
        if not is_ready(venv, stack):
            install(venv, stack)


def is_ready(venv: Path, stack: str) -> bool:
    stamp = venv / 'rdimkd_det.stamp'
    return stamp.is_file() and stamp.read_text() == fingerprint(stack) and has_python(venv)


def fingerprint(stack: str) -> str:
    """Return a hash of everything that decides what is installed."""
    digest = hashlib.sha256(f'{stack} {ROOT}'.encode())
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


def check_machine(stack: str) -> None:
    if not OLDEST[stack] <= sys.version_info[:2] <= NEWEST:
        oldest, newest = ('.'.join(map(str, version)) for version in (OLDEST[stack], NEWEST))
        fail(
            f'{sys.executable} is Python {sys.version.split()[0]}: install Python {oldest} to '
            f'{newest} and call make PYTHON=python3.x.'
        )
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if shutil.which(compiler) is None:
        fail(f'no C++ compiler ({compiler}): install one, e.g. apt-get install build-essential.')
    if not Path(sysconfig.get_path('include'), 'Python.h').is_file():
        fail("Python's headers (Python.h) are missing: install them, e.g. python3-dev.")


def install(venv: Path, stack: str) -> None:
    start = time.monotonic()
    stamp, python, log = venv / 'rdimkd_det.stamp', venv / 'bin' / 'python', venv / 'setup.log'
    if stamp.is_file():
        say(f'{venv.name} is out of date: updating it.')
        stamp.unlink()
    else:
        say(
            f'making {venv.name}. The first time takes about 18 minutes on 2 cores: '
            f"{MMCV[stack]}'s ops are compiled, and pip keeps the result."
        )
        forget_incomplete(venv)
    create(venv)
    log.write_text('')
    pip = [python, '-m', 'pip', 'install', '--disable-pip-version-check']
    pip += ['-c', constraints_of(stack)]

    # torch and the build tools first: mmcv's setup.py imports them.
    step('PyTorch and build tools', [*pip, 'setuptools', 'wheel', 'ninja', 'torch'], log)
    packages = f'{ROOT}[{stack},dev]'
    step(
        f'MMDetection; compiles {MMCV[stack]} (about 14 minutes on 2 cores) if pip has no wheel',
        [*pip, '--no-build-isolation', '-e', packages],
        log,
    )
    # opencv-python links libGL and X11, which servers and containers lack. The headless package has
    # the same files without windows, so it is always installed over opencv-python.
    headless = 'opencv-python-headless'
    if not all(map(is_whole, infos(venv, headless) or [venv])):
        step('OpenCV without windows', [*pip, '--force-reinstall', '--no-deps', headless], log)
    step('self-check', [python, '-W', 'ignore', '-c', SELF_CHECK], log)
    stamp.write_text(fingerprint(stack))
    versions = log.read_text().splitlines()[-1]
    say(f'{venv.name} is ready after {minutes(start)}: {versions}')


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
    environment = {'MAX_JOBS': str(os.cpu_count() or 1), **os.environ}
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
