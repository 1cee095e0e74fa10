"""SIGTERM and Ctrl-C."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interruptions import Stop, distributed, final, in_child, start
from mmengine.hooks import Hook
from mmengine.runner import Runner
from processes import run_distributed
from runs import REPOSITORY, assert_equal, fcos, load

import rdimkd_det.files.atomic
from rdimkd_det.training.guard import guard, latest_checkpoint
from rdimkd_det.training.guard.signals import SAME_REQUEST, StopRequest


def test_signal__after_a_training_that_failed_is_not_kept(config):
    """Such as Ctrl-C in a notebook: hooks are not notified of an exception."""

    class Fail(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            raise Stop

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(Stop):
        start(config(), Fail())
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal__writes_a_checkpoint_first(config, capsys, number, status):
    run = config(**{'default_hooks.checkpoint.interval': 100, 'custom_hooks': []})
    whole = config('whole')
    start(whole)

    class Send(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter + 1 == 6:
                os.kill(os.getpid(), number)

    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    run.custom_hooks = [dict(type='DistillHook', calibration_images=8)]
    with pytest.raises(KeyboardInterrupt) as stopped:
        start(run, Send())
    path = Path(run.work_dir) / 'interrupted.pth'
    assert str(stopped.value) == (
        f'stopped at iteration 6, written to {path}; continue with --resume.'
    )
    assert stopped.value.status == status
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert list(Path(run.work_dir).glob('*.pth')) == [path]
    start(run, resume=True)
    assert_equal(final(whole), final(run))
    assert not path.exists()  # replaced by a regular one


def test_signal__to_one_of_two_processes_stops_both(config, tmp_path):
    options = {'default_hooks.checkpoint.interval': 100, 'train_cfg.val_interval': 10}
    run = distributed(config(**options))

    def train_until_signal(rank):
        class Send(Hook):
            def before_train_iter(self, runner, batch_idx, data_batch=None):
                if runner.iter + 1 == 3 and rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)

        os.environ['LOCAL_RANK'] = str(rank)
        if rank == 0:
            replace = os.replace
            rdimkd_det.files.atomic.os.replace = lambda *paths: time.sleep(1) or replace(*paths)
        with pytest.raises(KeyboardInterrupt, match='stopped at iteration 10'):
            start(run, Send())
        # The first process that ends may end the others.
        return (Path(run.work_dir) / 'last_checkpoint').exists()

    assert run_distributed(train_until_signal, tmp_path) == [True, True]
    assert load(Path(run.work_dir) / 'interrupted.pth')['meta']['iter'] == 10


@pytest.mark.slow
def test_signal__command_line(config):
    """To all processes of a job, and twice: so do Slurm and torchrun."""
    run = config(num_workers=2)
    run.train_cfg.max_epochs = 100
    run.dump(Path(run.work_dir).parent / 'config.py')
    process = subprocess.Popen(
        [sys.executable, 'tools/train.py', str(Path(run.work_dir).parent / 'config.py')],
        cwd=REPOSITORY,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1'},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(Path(run.work_dir).glob('iter_*.pth')) and time.monotonic() < deadline:
        time.sleep(0.2)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    last = errors.strip().splitlines()[-1]
    assert last.startswith('train.py: stopped at iteration ') and 'interrupted.pth' in last
    assert 'Traceback' not in errors
    assert 'stopping after this iteration, with a checkpoint; once more stops at once' in errors
    assert latest_checkpoint(run.work_dir)[0].endswith('interrupted.pth')


@pytest.fixture
def listening():
    request = StopRequest()
    request.listen()
    yield request
    request.stop_listening()


def test_signal__again(listening, monkeypatch):
    """Another SIGTERM soon after is the same request; Ctrl-C once more, or a later one, is not."""
    seen = []
    listening._earlier = dict.fromkeys(listening._earlier, lambda number, _: seen.append(number))
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert listening.signal == signal.SIGTERM and not seen
    monkeypatch.setattr(time, 'monotonic', lambda now=time.monotonic: now() + SAME_REQUEST)
    signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGTERM]


def forked(count):
    """Yield sleeping processes, and kill them in the end."""
    context = multiprocessing.get_context('fork')
    children = [context.Process(target=time.sleep, args=(600,)) for _ in range(count)]
    with contextlib.ExitStack() as stack:
        for child in children:
            child.start()
            stack.callback(child.kill)
            yield child


def test_signal__ends_forked_processes_as_without_a_training(listening):
    """At any moment; a pool whose processes survive the signal would be waited for forever."""
    for child in forked(40):
        child.terminate()  # most have not even begun
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
    assert listening.signal is None
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_signal__mask_of_a_fork_is_the_earlier_one(listening):
    blocked = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        list(forked(1))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)


def test_signal__sigterm_of_another_process_is_left_to_the_parent(listening):
    """Slurm and torchrun send it to data loader workers too, even to those that just begin."""
    for child in forked(20):
        subprocess.run(['kill', str(child.pid)], check=True)
        child.join(0.1)
        assert child.is_alive()
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM


def test_signal__ctrl_c_is_left_to_the_parent(listening):
    """A terminal sends Ctrl-C to the workers too, but the last iterations need their batches."""
    for child in forked(1):
        os.kill(child.pid, signal.SIGINT)
        child.join(0.5)
        assert child.is_alive()
    listening.stop_listening()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for child in forked(1):
        os.kill(child.pid, signal.SIGINT)
        child.join(10)
        assert child.exitcode == -signal.SIGINT


def test_signal__metric_that_works_in_several_processes(config):
    run = config(model=fcos(), **{'val_evaluator.use_mp_eval': True, 'train_cfg.max_epochs': 2})

    def train_guarded():
        runner = Runner.from_cfg(run)
        guard(runner)
        runner.train()

    assert in_child(train_guarded) == 0
