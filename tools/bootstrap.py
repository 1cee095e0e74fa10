"""Make the environment of the Makefile: `python tools/bootstrap.py VENV {openmmlab,onedl}`.

Standard library only. Does nothing when the environment is complete; goes on where an interrupted
run stopped. Ends with one line and exit status 2 when something is missing.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / 'requirements' / 'constraints.txt'
INPUTS = (CONSTRAINTS, ROOT / 'setup.py', ROOT / 'pyproject.toml', Path(__file__))
MMCV = {'openmmlab': 'mmcv', 'onedl': 'onedl-mmcv'}
SELF_CHECK = 'import cv2, mmcv.ops, mmdet, rdimkd_det; print(mmcv.__version__, mmdet.__version__)'


def fail(message: str) -> None:
    print(f'setup: {message}', file=sys.stderr)
    sys.exit(2)


def main() -> None:
    venv, stack = Path(sys.argv[1]), sys.argv[2]
    if stack not in MMCV:
        fail(f'STACK must be openmmlab or onedl, got {stack}.')
    stamp, fingerprint = venv / 'rdimkd_det.stamp', fingerprint_of(stack)
    if stamp.is_file() and stamp.read_text() == fingerprint:
        return
    if sys.version_info < (3, 9):
        fail(
            f'Python {sys.version.split()[0]} is too old: install Python 3.9 or newer and call '
            f'make PYTHON=python3.x.'
        )
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if shutil.which(compiler) is None:
        fail(f'no C++ compiler ({compiler}): install one, e.g. apt-get install build-essential.')
    create(venv)
    log = venv / 'setup.log'
    log.write_text('')
    pip = [str(venv / 'bin' / 'python'), '-m', 'pip', '--disable-pip-version-check']
    install = [*pip, 'install', '-c', str(CONSTRAINTS)]
    # torch and the build tools first: mmcv's setup.py imports them.
    step('PyTorch and build tools', [*install, 'setuptools', 'wheel', 'ninja', 'torch'], log)
    step(
        f'{MMCV[stack]}, whose ops are compiled (once: about 14 minutes on 2 cores, then they are '
        f"in pip's cache), and MMDetection",
        [*install, '--no-build-isolation', '-e', f'{ROOT}[{stack},dev]'],
        log,
    )
    # opencv-python links libGL for its windows, which servers and containers lack.
    step('OpenCV without windows', [*pip, 'uninstall', '-y', 'opencv-python'], log)
    step(
        'OpenCV without windows',
        [*install, '--force-reinstall', '--no-deps', 'opencv-python-headless'],
        log,
    )
    step('self-check', [str(venv / 'bin' / 'python'), '-W', 'ignore', '-c', SELF_CHECK], log)
    stamp.write_text(fingerprint)


def fingerprint_of(stack: str) -> str:
    """A text that changes with whatever decides what is installed."""
    digest = hashlib.sha256(f'{stack} {ROOT} {sys.version}'.encode())
    for path in INPUTS:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def create(venv: Path) -> None:
    if (venv / 'bin' / 'pip').exists():
        return
    made = subprocess.run([sys.executable, '-m', 'venv', '--clear', str(venv)], capture_output=True)
    if made.returncode:
        fail(
            f'{sys.executable} -m venv failed: install the venv module, e.g. apt-get install '
            f'python3-venv.'
        )


def step(what: str, command: list, log: Path) -> None:
    """Run one command into the log, with a sign of life each minute."""
    print(f'setup: {what} ...', flush=True)
    done = threading.Event()
    threading.Thread(target=sign_of_life, args=(done,), daemon=True).start()
    with log.open('a') as output:
        status = subprocess.call(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
    done.set()
    if status:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        errors = [line for line in lines if 'error' in line.lower()] or lines[-1:]
        fail(
            f'{what} failed: {errors[-1].strip()} (see {log}; is the package index within reach, '
            f'and the disk not full? call make again to go on).'
        )


def sign_of_life(done: threading.Event) -> None:
    start = time.monotonic()
    while not done.wait(60):
        print(f'setup: ... {(time.monotonic() - start) / 60:.0f} min', flush=True)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        fail('interrupted; call make again to go on.')
