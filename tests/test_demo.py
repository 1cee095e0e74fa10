import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from malicious import Payload
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from runs import call_tool

from rdimkd_det.datasets.digits import DigitsOptions, make_digits
from rdimkd_det.demo import DemoOptions, stages
from rdimkd_det.demo.detections import choose_examples
from rdimkd_det.demo.plan import plan_runs
from rdimkd_det.demo.report import _verdict, build_page
from rdimkd_det.demo.results import Row, gain
from rdimkd_det.errors import ConfigError, TrainingInterruptedError
from rdimkd_det.files.whole import write_text
from rdimkd_det.reports.detections import Detection, Example, iou, match
from rdimkd_det.reports.page import page
from rdimkd_det.trainings import Run, TrainingFailedError, pool, training
from rdimkd_det.trainings.history import read_history
from rdimkd_det.trainings.state import lock_directory, read_json, write_json

ROOT = Path(__file__).parents[1]
CONSOLE = Console(file=open(os.devnull, 'w'))  # noqa: SIM115


def train_line(step, loss=1.0, epoch_length=10):
    epoch = (step - 1) // epoch_length + 1
    return {
        'loss': loss,
        'loss_rdimkd_neck_s8': loss / 2,
        'loss_rdimkd_neck_s16': loss / 4,
        'time': 0.5,
        'iter': step,
        'epoch': epoch,
        'step': step,
    }


def val_line(epoch, ap):
    scores = {'coco/bbox_mAP': ap, 'coco/bbox_mAP_50': ap + 0.1, 'coco/bbox_mAP_75': ap + 0.05}
    return {**scores, 'time': 9.0, 'step': epoch}


def write_part(work_dir, name, lines, cut_off=''):
    scalars = work_dir / name / 'vis_data' / 'scalars.json'
    scalars.parent.mkdir(parents=True)
    scalars.write_text('\n'.join(map(json.dumps, lines)) + '\n' + cut_off)


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
        monkeypatch.setattr(
            training, 'train_command', lambda run, epoch: [*command, program(run, epoch)]
        )
        monkeypatch.setattr(pool, 'POLL_INTERVAL', 0.05)

    return use


class TestHistory:
    def test_read_history__resumed_part_replaces_what_came_after_its_checkpoint(self, tmp_path):
        first = [train_line(5), train_line(10), val_line(1, 0.2), train_line(15), train_line(20)]
        write_part(
            tmp_path, '20260101_000000', [*first, val_line(2, 0.9)], cut_off='{"loss": 1, "s'
        )
        second = [train_line(15, loss=3.0), train_line(20, loss=4.0), val_line(2, 0.3)]
        write_part(tmp_path, '20260101_000500', second)
        history = read_history(tmp_path)
        assert history.series('loss') == ([5, 10, 15, 20], [1.0, 1.0, 3.0, 4.0])
        assert history.metrics(1)['ap'] == 0.2
        assert history.metrics() == {'ap': 0.3, 'ap50': 0.4, 'ap75': pytest.approx(0.35)}

    def test_read_history__later_steps_of_an_abandoned_part_are_void(self, tmp_path):
        write_part(tmp_path, '20260101_000000', [train_line(10), train_line(20), val_line(2, 0.9)])
        write_part(tmp_path, '20260101_000500', [train_line(15)])
        history = read_history(tmp_path)
        assert sorted(history.train) == [10, 15]
        assert history.val == {}

    @pytest.mark.parametrize('logged_step', [lambda iteration: iteration, lambda iteration: 0])
    @pytest.mark.parametrize('by_epoch', [False, True])
    def test_read_history__of_an_iteration_based_loop(self, tmp_path, logged_step, by_epoch):
        """Validations are logged with their iteration, or with epoch 0, LoggerHook's default."""

        def line(iteration):
            whole = train_line(iteration, epoch_length=1000)
            return whole if by_epoch else {k: v for k, v in whole.items() if k != 'epoch'}

        def val(iteration, ap):
            return val_line(logged_step(iteration), ap)

        first = [line(5), line(10), val(10, 0.2), line(15), line(20), val(20, 0.9), line(25)]
        write_part(tmp_path, '20260101_000000', first)
        assert read_history(tmp_path).ap_line == ([10, 20], [0.2, 0.9])
        # A validation at the checkpoint's own iteration came before what is trained anew.
        write_part(tmp_path, '20260101_000500', [val(10, 0.3), line(15)])
        assert read_history(tmp_path).ap_line[0] == [10]
        write_part(tmp_path, '20260101_001000', [line(15), line(20), val(20, 0.4)])
        history = read_history(tmp_path)
        assert history.ap_line == ([10, 20], [0.3, 0.4])
        assert sorted(history.train) == [5, 10, 15, 20]

    def test_seconds__counts_each_iteration_once(self, tmp_path):
        write_part(tmp_path, '20260101_000000', [train_line(5), train_line(10), train_line(15)])
        write_part(tmp_path, '20260101_000500', [train_line(15)])
        assert read_history(tmp_path).seconds(18) == pytest.approx(18 * 0.5)

    def test_losses__finest_stride_first(self, tmp_path):
        write_part(tmp_path, '20260101_000000', [train_line(5)])
        names = ['loss_rdimkd_neck_s8', 'loss_rdimkd_neck_s16']
        assert read_history(tmp_path).losses() == names

    def test_metrics__validation_without_detections_is_zero(self, tmp_path):
        write_part(tmp_path, '20260101_000000', [train_line(10), {'time': 1.0, 'step': 1}])
        assert read_history(tmp_path).metrics() == {'ap': 0.0, 'ap50': 0.0, 'ap75': 0.0}

    def test_ap_line__where_there_are_objects(self, tmp_path):
        of_voc = {'pascal_voc/mAP': 0.5, 'step': 3}
        lines = [train_line(10), val_line(1, 0.2), val_line(2, -1.0), of_voc, val_line(4, 0.3)]
        write_part(tmp_path, '20260101_000000', lines)
        history = read_history(tmp_path)
        assert history.ap_line == ([1, 4], [0.2, 0.3])
        assert history.metrics(3) == {}

    def test_read_history__nothing_there(self, tmp_path):
        history = read_history(tmp_path / 'none')
        assert (history.iterations, history.metrics(), history.seconds(0)) == (0, None, 0.0)


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
    def test_resume_epoch__needs_a_whole_and_validated_checkpoint(self, tmp_path):
        run = make_run(tmp_path, epochs=4)
        lines = [train_line(step) for step in (10, 20, 30)]
        write_part(tmp_path, '20260101_000000', [*lines, val_line(1, 0.1), val_line(2, 0.2)])
        assert training.resume_epoch(run) == 0
        for epoch in (1, 2, 3):
            save_checkpoint(tmp_path, epoch)
        assert training.resume_epoch(run) == 2  # the third was never validated
        whole = (tmp_path / 'epoch_2.pth').read_bytes()
        (tmp_path / 'epoch_2.pth').write_bytes(whole[: len(whole) // 2])
        assert training.resume_epoch(run) == 1

    def test_train_command__resumes_and_passes_seed_data_and_teacher(self, tmp_path, monkeypatch):
        monkeypatch.chdir(ROOT)
        options = DemoOptions(work_dir=tmp_path, data=Path('data/digits'), seeds=(7,))
        teacher, _, rdimkd = plan_runs(options)
        command = training.train_command(rdimkd, 3)
        assert command[command.index('--resume') + 1] == str(rdimkd.work_dir / 'epoch_3.pth')
        assert '--resume' not in training.train_command(rdimkd, 0)
        assert 'randomness.seed=7' in command
        assert f'model.teacher.checkpoint={teacher.checkpoint}' in command
        assert 'train_dataloader.dataset.data_root=data/digits' in command
        assert 'val_evaluator.ann_file=data/digits/annotations/val.json' in command

    def test_plan_runs__digest_tells_settings_apart(self, tmp_path):
        def digests(**options):
            return [run.digest for run in plan_runs(DemoOptions(work_dir=tmp_path, **options))]

        assert digests() == digests(jobs=1, data=tmp_path)
        assert len({*digests(), *digests(seeds=(1,))}) == 5  # the teacher is shared
        assert not {*digests()} & {*digests(digits=DigitsOptions(num_train=50))}

    def test_plan_runs__path_that_the_config_options_would_mangle(self, tmp_path):
        with pytest.raises(ConfigError, match='blanks, commas'):
            plan_runs(DemoOptions(work_dir=tmp_path, data=Path('/my data')))

    def test_check_settings__other_settings_are_not_overwritten(self, tmp_path):
        write_json(tmp_path / 'run.json', {'digest': 'another'})
        with pytest.raises(ConfigError, match='other settings'):
            training.check_settings(make_run(tmp_path))


class TestTraining:
    def test_train_all__finished_ones_are_not_redone(self, tmp_path, child):
        done, open_ = make_run(tmp_path / 'done'), make_run(tmp_path / 'open', seed=1)
        for run in (done, open_):
            finish_run(run, 0.5)
        child(lambda run, epoch: f'open({str(run.work_dir / "started")!r}, "w")')
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
        child(lambda run, epoch: programs[run.work_dir])
        expected = r'plain student, seed 0: ValueError: no such tap \(log: .*a/train.log\)'
        with pytest.raises(TrainingFailedError, match=expected) as error:
            pool.train_all([other, failing], 2, CONSOLE)
        assert '\n' not in str(error.value)
        pid = (other.work_dir / 'train.log').read_text().strip()
        assert not pid or not Path(f'/proc/{pid}').exists()
        assert lock_directory(other.work_dir) is not None

    def test_train_all__killed_child(self, tmp_path, child):
        run = make_run(tmp_path)
        child(lambda run, epoch: f'import os; os.kill(os.getpid(), {int(signal.SIGKILL)})')
        with pytest.raises(TrainingFailedError, match='killed by SIGKILL'):
            pool.train_all([run], 1, CONSOLE)
        assert not training.is_done(run)

    def test_train_all__no_result_is_a_failure(self, tmp_path, child):
        child(lambda run, epoch: '')
        with pytest.raises(TrainingFailedError, match='without its result'):
            pool.train_all([make_run(tmp_path)], 1, CONSOLE)

    @pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_stop_on_signals__ends_the_trainings_and_says_how_to_go_on(self, tmp_path, child, how):
        run, handler = make_run(tmp_path), signal.getsignal(how)
        child(
            lambda run, epoch: f'import os, time; os.kill(os.getppid(), {int(how)}); time.sleep(60)'
        )
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
            ('demo.py', 'rdimkd_det.demo.run_demo'),
            ('run_experiments.py', 'rdimkd_det.experiments.stages.run_experiments'),
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
    def test_tools__end_in_one_line(self, capsys, monkeypatch, tool, function, error, status):
        monkeypatch.setattr(function, mock.Mock(side_effect=error))
        with pytest.raises(SystemExit) as stopped:
            call_tool(tool)
        assert stopped.value.code == status
        assert capsys.readouterr().err == f'{tool}: {str(error) or "interrupted."}\n'

    def test_training__directory_in_use(self, tmp_path, child, monkeypatch):
        monkeypatch.setattr(training, 'LOCK_PATIENCE', 0.0)
        child(lambda run, epoch: 'import time; time.sleep(60)')
        first = training.Training(make_run(tmp_path))
        with pytest.raises(ConfigError, match='in use by another training'):
            training.Training(make_run(tmp_path))
        first.stop()
        training.Training(make_run(tmp_path)).stop()

    @pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs PR_SET_PDEATHSIG')
    def test_training__dies_with_its_killed_parent(self, tmp_path):
        program = (
            'import sys, time; sys.path.insert(0, sys.argv[1]); import test_demo as t\n'
            'from pathlib import Path\n'
            'sleep = [sys.executable, "-c", "import time; time.sleep(60)"]\n'
            't.training.train_command = lambda run, epoch: sleep\n'
            'started = t.training.Training(t.make_run(Path(sys.argv[2])))\n'
            'print(started.process.pid, flush=True); time.sleep(60)'
        )
        env = dict(os.environ, PYTHONPATH=str(ROOT))
        command = [sys.executable, '-c', program, str(Path(__file__).parent), str(tmp_path)]
        parent = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        # OneDL's mmdet prints a line of its own when it is imported.
        assert any(line.strip().isdigit() for line in parent.stdout)
        parent.kill()
        parent.wait()
        assert lock_directory(tmp_path, patience=10.0) is not None

    def test_run_demo__second_demo_in_the_same_directory(self, tmp_path):
        with lock_directory(tmp_path), pytest.raises(ConfigError, match='another demo is running'):
            stages.run_demo(DemoOptions(work_dir=tmp_path), 'demo', CONSOLE)

    @pytest.mark.parametrize('terminal', [True, False])
    def test_train_all__shows_epoch_and_ap(self, tmp_path, child, terminal):
        run = make_run(tmp_path)
        finish_run(run, 0.5)
        child(lambda run, epoch: 'import time; time.sleep(0.5)')
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        pool.train_all([run], 1, console)
        output = console.file.getvalue()
        assert 'plain student, seed 0' in output
        assert 'epoch 2/2' in output
        assert 'AP 0.500' in output
        assert ('\x1b[' in output) == terminal


class TestDetections:
    def test_match__one_right_detection_per_object_and_class(self):
        truths = [Detection((0, 0, 10, 10), '3', 1.0)]
        found = [
            Detection((0, 0, 10, 9), '3', 0.5),
            Detection((0, 0, 10, 10), '3', 0.9),
            Detection((0, 0, 10, 10), '8', 0.8),
            Detection((0, 6, 10, 16), '3', 0.7),
        ]
        judged = match(found, truths)
        assert [(it.score, it.right) for it in judged] == [
            (0.9, True), (0.8, False), (0.7, False), (0.5, False)
        ]  # fmt: skip

    def test_iou__literal_values(self):
        assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
        assert iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0
        assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


class TestExamples:
    @pytest.fixture
    def students(self, tmp_path, monkeypatch):
        """Return trainings of a student that finds nothing and one that finds boxes everywhere."""
        make_digits(tmp_path / 'digits', DigitsOptions(num_train=1, num_val=8))
        config = Config.fromfile(ROOT / 'configs/digits/fcos_r18.py')
        init_default_scope('mmdet')
        runs = [make_run(tmp_path / kind, kind) for kind in ('plain', 'rdimkd')]
        for run, bias in zip(runs, (-9.0, 5.0)):
            finish_run(run, 0.5)
            config.dump(run.work_dir / '20260101_000000' / 'vis_data' / 'config.py')
            model = MODELS.build(config.model)
            torch.nn.init.constant_(model.bbox_head.conv_cls.bias, bias)
            torch.save({'state_dict': model.state_dict()}, run.checkpoint)
        monkeypatch.chdir(tmp_path)  # where the data/digits of the config are not
        return runs

    def test_choose_examples__of_all_val_images(self, tmp_path, students):
        examples = choose_examples(tmp_path / 'digits', students, CONSOLE)
        assert len(examples) == 6
        content = json.loads((tmp_path / 'digits/annotations/val.json').read_text())
        images = {image['file_name']: image['id'] for image in content['images']}
        for example in examples:
            assert example.path.parent == tmp_path / 'digits/val' and example.size == (96, 96)
            boxes = [
                (x, y, x + width, y + height)
                for annotation in content['annotations']
                for x, y, width, height in [annotation['bbox']]
                if annotation['image_id'] == images[example.path.name]
            ]
            assert [truth.box for truth in example.truths] == boxes
            assert example.found['plain'] == [] and len(example.found['rdimkd']) > 10
        differences = [example.difference for example in examples]
        assert differences == sorted(differences, reverse=True)

    def test_choose_examples__checkpoints_are_read_as_data(self, tmp_path, students):
        proof, run = tmp_path / 'payload_ran', students[1]
        content = torch.load(run.checkpoint, weights_only=True)
        torch.save({**content, 'payload': Payload(proof)}, run.checkpoint)
        with pytest.raises(ConfigError, match='could run code'):
            choose_examples(tmp_path / 'digits', students, CONSOLE)
        assert not proof.exists()
        torch.load(run.checkpoint, weights_only=False)
        assert proof.exists()  # it would have


def make_rows(seeds=(0,)):
    counts = dict(parameters=1_780_000, seconds=300.0, threads=1)
    rows = [Row('teacher', 0, 0.651, 0.8, 0.7, **counts)]
    for seed in seeds:
        rows += [Row('plain', seed, 0.347, 0.6, 0.3, **counts)]
        rows += [Row('rdimkd', seed, 0.491, 0.7, 0.5, **counts)]
    return rows


class TestReport:
    @pytest.fixture
    def html(self, tmp_path):
        runs = [make_run(tmp_path / kind, kind) for kind in ('teacher', 'plain', 'rdimkd')]
        for run in runs:
            finish_run(run, 0.4)
        image = tmp_path / '<b>.png'
        cv2.imwrite(str(image), np.zeros((30, 40, 3), np.uint8))
        truth = Detection((25, 2, 35, 12), '7', 1.0)
        found = {'plain': [], 'rdimkd': [Detection((25, 2, 35, 12), '7', 0.87, right=True)]}
        provenance = {
            'date': '2026-01-01T00:00:00',
            'command': 'python tools/demo.py --data "<here>"',
            'seeds': [0],
            'machine': {'cores': 2, 'torch': '2.13.0'},
        }
        examples = [Example(image, (40, 30), [truth], found)]
        return build_page(make_rows(), runs, examples, provenance)

    def test_build_page__contains_the_numbers(self, html):
        for text in ('0.651', '0.347', '0.491', '0.144 AP above', '1.78 M', '5 min', '2.13.0'):
            assert text in html
        assert 'plain: 0 of 1 right' in html
        assert 'RdimKD: 1 of 1 right' in html
        assert 'neck, stride 8' in html
        assert '&lt;here&gt;' in html
        assert '<b>' not in html

    def test_build_page__fetches_nothing(self, html):
        references = re.findall(r'(?:src|href)\s*=\s*"?([^"\s>]+)', html)
        references += re.findall(r'url\(([^)]*)\)', html)
        assert references
        assert all(it.startswith(('#', 'data:image/png;base64,')) for it in references)
        assert '@import' not in html
        assert '<script' not in html

    def test_build_page__ids_of_the_drawings_are_unique(self, html):
        ids = re.findall(r' id="([^"]+)"', html)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', html)) <= set(ids)

    def test_verdict__for_each_outcome(self):
        def verdict(plain, rdimkd, seeds=1):
            aps = {'plain': plain, 'rdimkd': rdimkd}
            rows = make_rows(range(seeds))
            return _verdict([replace(row, ap=aps.get(row.kind, row.ap)) for row in rows])

        student = 'The student that also learns from the teacher (RdimKD)'
        end = '; the two differ in the teacher only.'
        assert verdict(0.3, 0.4) == f'{student} ends 0.100 AP above the plain student{end}'
        assert verdict(0.4, 0.3) == f'{student} ends 0.100 AP below the plain student{end}'
        equal = f'{student} and the plain student end with equal AP'
        assert verdict(0.0, 0.0) == equal + end
        assert verdict(0.3, 0.2999, seeds=2) == f'{equal}, in the mean of 2 seeds{end}'

    def test_page__escapes_the_title(self):
        assert '<h1>a &lt; b</h1>' in page('a < b', [])

    def test_gain__mean_over_seeds(self):
        assert gain(make_rows(seeds=(0, 1))) == pytest.approx(0.144)


@pytest.mark.slow
def test_demo__smoke_is_killed_and_goes_on(tmp_path):
    command = [sys.executable, 'tools/demo.py', '--smoke', '--jobs', '1', '--work-dir', 'DIR']
    command[-1] = str(tmp_path / 'demo')
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    options = dict(cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = subprocess.Popen(command, **options)
    done = tmp_path / 'demo' / 'teacher' / 'done.json'
    deadline = time.monotonic() + 300
    while not done.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    first.kill()
    output = first.communicate()
    assert done.exists(), output
    made = (tmp_path / 'demo' / 'teacher' / 'epoch_1.pth').stat().st_mtime_ns

    second = subprocess.run(command, **options)
    assert second.returncode == 0, second.stderr
    assert 'RdimKD student' in second.stdout
    assert (tmp_path / 'demo' / 'teacher' / 'epoch_1.pth').stat().st_mtime_ns == made
    results = json.loads((tmp_path / 'demo' / 'results.json').read_text())
    assert [row['kind'] for row in results['rows']] == ['teacher', 'plain', 'rdimkd']
    assert results['rows'][1]['parameters'] == results['rows'][2]['parameters'] > 1e6
    assert 'loss' in (tmp_path / 'demo' / 'report.html').read_text()
