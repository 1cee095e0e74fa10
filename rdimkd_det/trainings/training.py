"""One training as a child process: start or resume it, watch it, stop it, mark it as done."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from ..errors import ConfigError, TrainingStoppedError
from .history import list_parts, read_history
from .run import ROOT, Run
from .state import lock_directory, read_json, write_json

LOG = 'train.log'
# Workers of the data loader check every 5 seconds whether their parent is alive; orphaned workers
# hold the lock until then.
LOCK_PATIENCE = 20.0
PR_SET_PDEATHSIG = 1
ERROR_LINE = re.compile(r'(\w+\.)*\w*(Error|Exception|Interrupt|Exit)\b|train\.py: ')


class TrainingFailedError(TrainingStoppedError):
    """A training ended without its result; the message is one line."""


class Training:
    """A running training.

    Args:
        run (Run): What to train; it resumes from the epoch of :func:`resume_epoch`.

    Raises:
        ConfigError: The work directory is in use by another training.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.lock = lock_directory(run.work_dir, LOCK_PATIENCE)
        if self.lock is None:
            raise ConfigError(f'{run.work_dir} is in use by another training.')
        write_json(run.work_dir / 'run.json', {'digest': run.digest, 'threads': run.threads})
        self.earlier_parts = list_parts(run.work_dir)
        epoch = resume_epoch(run)
        self.first_step = epoch * run.epoch_length
        self.first_seen: tuple[float, int] | None = None
        self.process = self._start(epoch)

    def _start(self, epoch: int) -> subprocess.Popen:
        env = dict(os.environ, OMP_NUM_THREADS=str(self.run.threads))
        env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), env.get('PYTHONPATH')]))
        with (self.run.work_dir / LOG).open('a') as log:
            return subprocess.Popen(
                train_command(self.run, epoch),
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the parent only, which stops the group
                pass_fds=[self.lock.fileno()],
                preexec_fn=_die_with_parent(),
            )

    def step(self) -> int:
        """Return the number of iterations done, as logged."""
        logged = read_history(self.run.work_dir, skip=self.earlier_parts).iterations
        step = max(self.first_step, logged)
        if self.first_seen is None and step > self.first_step:
            self.first_seen = time.monotonic(), step
        return step

    def pace(self, step: int) -> float | None:
        """Return wall-clock seconds per iteration with validation; None if it is too early to say.

        Args:
            step (int): Iterations done.
        """
        if self.first_seen is None or step == self.first_seen[1]:
            return None
        return (time.monotonic() - self.first_seen[0]) / (step - self.first_seen[1])

    def poll(self) -> bool:
        """Check whether the training has ended with its result; if so, mark it as done.

        Raises:
            TrainingFailedError: The training ended without its result; says why, and names the log.
        """
        status = self.process.poll()
        if status is None:
            return False
        self.lock.close()
        log = self.run.work_dir / LOG
        if status != 0:
            raise TrainingFailedError(f'{self.run.title}: {_cause(log, status)} (log: {log})')
        if resume_epoch(self.run) < self.run.epochs:
            raise TrainingFailedError(f'{self.run.title} ended without its result (log: {log})')
        state = {'digest': self.run.digest, 'checkpoint': self.run.checkpoint.name}
        write_json(self.run.work_dir / 'done.json', state)
        return True

    def stop(self) -> None:
        """Kill the training and its data loader; saved checkpoints are kept."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.lock.close()


def is_done(run: Run) -> bool:
    """Check whether a training has its result already."""
    done = read_json(run.work_dir / 'done.json')
    return done.get('digest') == run.digest and run.checkpoint.is_file()


def check_settings(run: Run) -> None:
    """Check that the work directory does not hold a training with other settings.

    Raises:
        ConfigError: It does.
    """
    digest = read_json(run.work_dir / 'run.json').get('digest', run.digest)
    if digest != run.digest:
        raise ConfigError(
            f'{run.work_dir} holds a training with other settings (its config, data or teacher '
            f'has changed); delete it or choose another --work-dir.'
        )


def resume_epoch(run: Run) -> int:
    """Return the last epoch with a complete checkpoint and a validation; 0 if there is none.

    A kill may leave a truncated checkpoint, or one without a validation, whose AP would stay
    missing because mmengine resumes with the next epoch. The checkpoint before it is still there.
    """
    validated = read_history(run.work_dir).val
    for epoch in sorted(validated, reverse=True):
        if zipfile.is_zipfile(run.work_dir / f'epoch_{epoch}.pth'):
            return epoch
    return 0


def train_command(run: Run, epoch: int) -> list[str]:
    """Return the command line of a training, resumed after an epoch if that is not 0."""
    command = [sys.executable, 'tools/train.py', run.config]
    command += ['--work-dir', str(run.work_dir.absolute())]
    if epoch > 0:
        command += ['--resume', str(run.work_dir.absolute() / f'epoch_{epoch}.pth')]
    options = {**run.settings, **run.paths}
    return [*command, '--cfg-options', *(f'{key}={value}' for key, value in options.items())]


def _die_with_parent():
    if not sys.platform.startswith('linux'):
        return None  # an orphan continues there, and its lock protects the directory
    libc, parent = ctypes.CDLL(None), os.getpid()

    def set_death_signal() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the call
            os._exit(1)

    return set_death_signal


def _cause(log: Path, status: int) -> str:
    if status < 0:
        return f'killed by {signal.Signals(-status).name}'
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines()[-200:]]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return (errors or [line for line in lines if line] or ['no output'])[-1]
