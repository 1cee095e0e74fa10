"""Trainings as child processes: what is done is not done again, and how they end and resume."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from logs import train_line, val_line, write_part
from rich.console import Console
from runs import REPOSITORY, call_tool

from experiments.running import Run, TrainingFailedError, pool, training
from experiments.running.locks import lock_directory
from experiments.running.pace import logged_pace, logged_seconds
from rdimkd_det.errors import ConfigError, TrainingInterruptedError
from rdimkd_det.files.atomic import read_json, write_json, write_text
from rdimkd_det.files.scalars import read_history

CONSOLE = Console(file=open(os.devnull, 'w'))  # noqa: SIM115


def save_checkpoint(work_dir, epoch):
    torch.save({'state_dict': {}}, work_dir / f'epoch_{epoch}.pth')


def make_run(work_dir, kind='plain', seed=0, epochs=2):
    title = f'{kind} student, seed {seed}'
    return Run(kind, seed, work_dir, epochs, 10, 1, {}, {}, f'{kind}{seed}', 'x.py', title, 0.3)


def finish_run(run, ap):
    """Write the files of a finished training."""
    steps = range(5, run.iterations + 1, 5)
    lines = [train_line(step, loss=1 / step) for step in steps]
    lines += [val_line(epoch, ap * epoch / run.epochs) for epoch in range(1, run.epochs + 1)]
    write_part(run.work_dir, '20260101_000000', lines)
    save_checkpoint(run.work_dir, run.epochs)


@pytest.fixture
def child(monkeypatch):
    """Replace the training by a short Python program, given as a function of the run."""

    def use(program):
        command = [sys.executable, '-c']
        monkeypatch.setattr(training, 'train_command', lambda run: [*command, program(run)])
        monkeypatch.setattr(pool, 'POLL_INTERVAL', 0.05)

    return use


class TestState:
    def test_write_text__a_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / 'done.json'
        write_json(path, {'digest': 'old'})

        def no_space(number):
            raise OSError('no space left')

        monkeypatch.setattr(os, 'fsync', no_space)
        with pytest.raises(OSError, match='no space'):
            write_text(path, 'half of')
        assert read_json(path) == {'digest': 'old'}
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize('text', ['', '{"digest":', '[1]'])
    def test_read_json__damaged_file_counts_as_none(self, tmp_path, text):
        (tmp_path / 'done.json').write_text(text)
        assert read_json(tmp_path / 'done.json') == {}

    def test_lock_directory__one_holder(self, tmp_path):
        lock = lock_directory(tmp_path)
        assert lock_directory(tmp_path) is None
        lock.close()
        assert lock_directory(tmp_path) is not None


class TestResumption:
    def test_train_command__resumes_and_passes_seed_and_paths(self, tmp_path):
        run = make_run(tmp_path)
        run.settings['randomness.seed'] = '7'
        run.paths['train_dataloader.dataset.data_root'] = 'data/digits'
        command = training.train_command(run)
        assert command[2:4] == ['x.py', '--resume']
        assert command[-2:] == [
            'randomness.seed=7', 'train_dataloader.dataset.data_root=data/digits'
        ]  # fmt: skip

    def test_steps_kept__of_the_newest_checkpoint(self, tmp_path):
        run = make_run(tmp_path, epochs=4)
        write_part(tmp_path, '20260101_000000', [train_line(step) for step in (10, 20, 25)])
        assert training.steps_kept(run) == 0
        save_checkpoint(tmp_path, 1)
        save_checkpoint(tmp_path, 2)
        assert training.steps_kept(run) == 20
        torch.save({}, tmp_path / 'interrupted.pth')
        assert training.steps_kept(run) == 25

    def test_stop__lets_the_training_write_a_checkpoint(self, tmp_path, child):
        child(
            lambda run: (
                'import signal, sys, time\n'
                f'save = lambda *_: (open({str(tmp_path / "saved")!r}, "w"), sys.exit(143))\n'
                'signal.signal(signal.SIGTERM, save)\n'
                'print("ready", flush=True); time.sleep(60)'
            )
        )
        started = training.Training(make_run(tmp_path))
        while 'ready' not in (tmp_path / 'train.log').read_text():
            assert started.process.poll() is None
        started.ask_to_stop()
        started.stop()
        assert started.process.returncode == 143 and (tmp_path / 'saved').exists()

    def test_stop__kills_what_does_not_end(self, tmp_path, child, monkeypatch):
        monkeypatch.setattr(training, 'STOP_PATIENCE', 0.1)
        child(
            lambda run: (
                'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
                'print("ready", flush=True); time.sleep(60)'
            )
        )
        started = training.Training(make_run(tmp_path))
        while 'ready' not in (tmp_path / 'train.log').read_text():
            assert started.process.poll() is None
        started.ask_to_stop()
        started.stop()
        assert started.process.returncode == -signal.SIGKILL


class TestTraining:
    def test_train_all__finished_ones_are_not_redone(self, tmp_path, child):
        done, open_ = make_run(tmp_path / 'done'), make_run(tmp_path / 'open', seed=1)
        for run in (done, open_):
            finish_run(run, 0.5)
        child(lambda run: f'open({str(run.work_dir / "started")!r}, "w")')
        write_json(done.work_dir / 'done.json', {'digest': done.digest})
        pool.train_all([done, open_], 2, CONSOLE)
        assert not (done.work_dir / 'started').exists()
        assert (open_.work_dir / 'started').exists()
        assert training.is_done(open_)
        (open_.work_dir / 'started').unlink()
        pool.train_all([done, open_], 2, CONSOLE)
        assert not (open_.work_dir / 'started').exists()

    def test_is_done__not_with_other_settings_or_without_checkpoint(self, tmp_path):
        run = make_run(tmp_path)
        finish_run(run, 0.5)
        write_json(tmp_path / 'done.json', {'digest': 'another'})
        assert not training.is_done(run)
        write_json(tmp_path / 'done.json', {'digest': run.digest})
        assert training.is_done(run)
        run.checkpoint.unlink()
        assert not training.is_done(run)

    def test_train_all__failure_names_cause_and_log_and_stops_the_others(self, tmp_path, child):
        failing, other = make_run(tmp_path / 'a'), make_run(tmp_path / 'b', seed=1)
        programs = {
            failing.work_dir: 'print("progress"); raise ValueError("no such tap")',
            other.work_dir: 'import os, time; print(os.getpid(), flush=True); time.sleep(60)',
        }
        child(lambda run: programs[run.work_dir])
        expected = r'plain student, seed 0: ValueError: no such tap \(log: .*a/train.log\)'
        with pytest.raises(TrainingFailedError, match=expected) as error:
            pool.train_all([other, failing], 2, CONSOLE)
        assert '\n' not in str(error.value)
        pid = (other.work_dir / 'train.log').read_text().strip()
        assert not pid or not Path(f'/proc/{pid}').exists()
        assert lock_directory(other.work_dir) is not None

    def test_train_all__killed_child(self, tmp_path, child):
        run = make_run(tmp_path)
        child(lambda run: f'import os; os.kill(os.getpid(), {int(signal.SIGKILL)})')
        with pytest.raises(TrainingFailedError, match='killed by SIGKILL'):
            pool.train_all([run], 1, CONSOLE)
        assert not training.is_done(run)

    def test_train_all__no_result_is_a_failure(self, tmp_path, child):
        child(lambda run: '')
        with pytest.raises(TrainingFailedError, match='without its result'):
            pool.train_all([make_run(tmp_path)], 1, CONSOLE)

    @pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_stop_on_signals__ends_the_trainings_and_says_how_to_go_on(self, tmp_path, child, how):
        run, handler = make_run(tmp_path), signal.getsignal(how)
        child(lambda run: f'import os, time; os.kill(os.getppid(), {int(how)}); time.sleep(60)')
        with (
            pytest.raises(TrainingInterruptedError, match='the same command continues') as error,
            pool.stop_on_signals(),
        ):
            pool.train_all([run], 1, CONSOLE)
        assert error.value.status == 130
        assert lock_directory(run.work_dir) is not None  # the training is gone
        assert signal.getsignal(how) is handler

    @pytest.mark.parametrize(
        'tool, function',
        [
            ('demo.py', 'experiments.stages.run_experiments'),
            ('run_experiments.py', 'experiments.stages.run_experiments'),
        ],
    )
    @pytest.mark.parametrize(
        'error, status',
        [
            (TrainingFailedError('plain student, seed 0: killed by SIGKILL (log: a)'), 1),
            (TrainingInterruptedError('interrupted; the same command continues.', status=130), 130),
            (KeyboardInterrupt(), 130),
        ],
    )
    def test_tools__end_in_one_line(
        self, tmp_path, capsys, monkeypatch, tool, function, error, status
    ):
        monkeypatch.setattr(function, mock.Mock(side_effect=error))
        with pytest.raises(SystemExit) as stopped:
            call_tool(tool, '--work-dir', tmp_path)
        assert stopped.value.code == status
        assert capsys.readouterr().err == f'{tool}: {str(error) or "interrupted."}\n'

    def test_training__directory_in_use(self, tmp_path, child, monkeypatch):
        monkeypatch.setattr(training, 'LOCK_PATIENCE', 0.0)
        child(lambda run: 'import time; time.sleep(60)')
        first = training.Training(make_run(tmp_path))
        with pytest.raises(ConfigError, match='in use by another training'):
            training.Training(make_run(tmp_path))
        first.stop()
        training.Training(make_run(tmp_path)).stop()

    @pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs PR_SET_PDEATHSIG')
    def test_training__dies_with_its_killed_parent(self, tmp_path):
        program = (
            'import sys, time; sys.path.insert(0, sys.argv[1]); import test_running as t\n'
            'from pathlib import Path\n'
            'sleep = [sys.executable, "-c", "import time; time.sleep(60)"]\n'
            't.training.train_command = lambda run: sleep\n'
            'started = t.training.Training(t.make_run(Path(sys.argv[2])))\n'
            'print(started.process.pid, flush=True); time.sleep(60)'
        )
        folders = [REPOSITORY, REPOSITORY / 'tests']
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, folders)))
        command = [sys.executable, '-c', program, str(Path(__file__).parent), str(tmp_path)]
        parent = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        # OneDL's mmdet prints a line of its own when it is imported.
        assert any(line.strip().isdigit() for line in parent.stdout)
        parent.kill()
        parent.wait()
        assert lock_directory(tmp_path, patience=10.0) is not None

    @pytest.mark.parametrize('terminal', [True, False])
    def test_train_all__shows_epoch_and_ap(self, tmp_path, child, terminal):
        run = make_run(tmp_path)
        finish_run(run, 0.5)
        child(lambda run: 'import time; time.sleep(0.5)')
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        pool.train_all([run], 1, console)
        output = console.file.getvalue()
        assert 'plain student, seed 0' in output
        assert 'epoch 2/2' in output
        assert 'AP 0.500' in output
        assert ('\x1b[' in output) == terminal


def test_logged_seconds__each_iteration_once(tmp_path):
    assert logged_pace(read_history(tmp_path)) is None
    write_part(tmp_path, '20260101_000000', [train_line(5), train_line(10), train_line(15)])
    write_part(tmp_path, '20260101_000500', [train_line(15)])
    history = read_history(tmp_path)
    assert logged_seconds(history, 18) == pytest.approx(18 * 0.5)
    assert logged_pace(history) == pytest.approx(0.5)
