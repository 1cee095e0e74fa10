"""One training as a child process: start or resume it, watch it, stop it, mark it as done."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from rdimkd_det.errors import ConfigError, TrainingStoppedError
from rdimkd_det.files.atomic import read_json, write_json
from rdimkd_det.files.scalars import list_parts, read_history

from .locks import lock_directory
from .run import ROOT, Run

LOG = 'train.log'
# Workers of the data loader check every 5 seconds whether their parent is alive; orphaned workers
# hold the lock until then.
LOCK_PATIENCE = 20.0
STOP_PATIENCE = 20.0  # seconds for an iteration and a checkpoint
PR_SET_PDEATHSIG = 1
ERROR_LINE = re.compile(r'(\w+\.)*\w*(Error|Exception|Interrupt|Exit)\b|train\.py: ')


class TrainingFailedError(TrainingStoppedError):
    """A training ended without its result; the message is one line."""


class Training:
    """A running training.

    Args:
        run (Run): What to train; it resumes from its newest whole checkpoint.

    Raises:
        ConfigError: The work directory is in use by another training.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.lock = lock_directory(run.work_dir, LOCK_PATIENCE)
        if self.lock is None:
            raise ConfigError(f'{run.work_dir} is in use by another training.')
        self.earlier_parts = list_parts(run.work_dir)
        self.first_step = steps_kept(run)
        self.first_seen: tuple[float, int] | None = None
        self.process = self._start()

    def _start(self) -> subprocess.Popen:
        env = dict(os.environ, OMP_NUM_THREADS=str(self.run.threads))
        env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), env.get('PYTHONPATH')]))
        with (self.run.work_dir / LOG).open('a') as log:
            return subprocess.Popen(
                train_command(self.run),
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
        validated = self.run.epochs in read_history(self.run.work_dir).val
        if not (validated and self.run.checkpoint.is_file()):
            raise TrainingFailedError(f'{self.run.title} ended without its result (log: {log})')
        state = {'digest': self.run.digest, 'checkpoint': self.run.checkpoint.name}
        write_json(self.run.work_dir / 'done.json', state)
        return True

    def ask_to_stop(self) -> None:
        """Let the training write a checkpoint after its current iteration and end."""
        self.process.terminate()  # nothing if it has ended

    def stop(self) -> None:
        """Wait until the training has ended, or kill it; kill its data loader in any case."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.lock.close()


def is_done(run: Run) -> bool:
    """Check whether a training has its result already."""
    done = read_json(run.work_dir / 'done.json')
    return done.get('digest') == run.digest and run.checkpoint.is_file()


def steps_kept(run: Run) -> int:
    """Return the iterations that a training has behind it when it resumes."""
    if (run.work_dir / 'interrupted.pth').is_file():
        return read_history(run.work_dir).iterations
    epochs = [int(path.stem.rpartition('_')[2]) for path in run.work_dir.glob('epoch_*.pth')]
    return max(epochs, default=0) * run.epoch_length


def train_command(run: Run) -> list[str]:
    """Return the command line of a training, which resumes if it has a checkpoint."""
    command = [sys.executable, 'tools/train.py', run.config, '--resume']
    command += ['--work-dir', str(run.work_dir.absolute())]
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
