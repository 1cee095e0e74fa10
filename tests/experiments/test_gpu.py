"""tools/check_gpu.py: each check in its own process; on a CPU, in small."""

import itertools
import json
import os
import shutil
import sys
from unittest import mock

import pytest
import torch
from mmcv import ops
from mmdet.registry import DATASETS, MODELS
from runs import CLASSES, REPOSITORY, call_tool, run_tool, write_data

from experiments.digits.images import DigitsOptions
from experiments.digits.making import make_digits
from experiments.gpu import child, operators, training
from experiments.gpu.running import run_checks
from experiments.gpu.step import memory_ratio
from experiments.gpu.task import Task, bar, difference
from rdimkd_det.stopwatch import Cost

HANGING = """
import subprocess, time
def check(task):
    sleeping = subprocess.Popen(['sleep', '1000'])
    yield {'pid': sleeping.pid, 'bars': [dict(name='first', value=0, limit=1, ok=True)]}
    time.sleep(1000)
"""
CRASHING = """
import os
def check(task):
    yield {'seconds_given': task.seconds}
    os.abort()
"""


def test_bar__literal():
    assert bar('a', 2.0, 3)['ok'] and not bar('a', 3.1, 3)['ok'] and bar('a', 5)['ok'] is None
    assert bar('a', float('nan'), 3) == {'name': 'a', 'value': None, 'limit': 3, 'ok': False}
    assert bar('a', None, 3, error='E: x') == {**bar('a', None, 3), 'error': 'E: x'}


def test_difference__is_relative_to_the_largest_value():
    expected = torch.tensor([[4.0, -8.0], [0.0, 1.0]])
    assert difference(expected + 2, expected) == 0.25
    assert difference(expected[:1], expected) == float('inf')
    assert difference(torch.zeros(0, 5), torch.zeros(0, 5)) == 0


# A process for each


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir('/proc'), reason='Linux tells which processes live')
def test_run_checks__neither_a_hang_nor_a_crash_stops_the_others(tmp_path, monkeypatch):
    (tmp_path / 'hanging.py').write_text(HANGING)
    (tmp_path / 'crashing.py').write_text(CRASHING)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    checks = {'a': 'hanging', 'b': 'crashing'}
    (tmp_path / 'a.json').write_text('{"of": "an earlier run"}')
    task = Task('cpu', str(tmp_path), 90)
    run_checks(checks, tmp_path, task, {'command': 'python x.py'})
    hanging, crashing = (json.loads((tmp_path / f'{name}.json').read_text()) for name in 'ab')
    assert hanging['error'].startswith('stopped after 30 s;') and not hanging['ok']
    assert [it['name'] for it in hanging['bars']] == ['first'] and 'of' not in hanging
    assert not os.path.isdir(f'/proc/{hanging["pid"]}')
    assert crashing['error'] == 'ended by SIGABRT; see the log' and not crashing['ok']
    assert 30 < crashing['seconds_given'] < 61
    assert hanging['command'] == 'python x.py' and hanging['machine']['torch'] == torch.__version__


def test_child__an_exception_is_one_line_of_the_report(tmp_path, monkeypatch, capsys):
    source = "def check(task):\n    yield {'a': 1}\n    raise ValueError('no\\n  room')\n"
    (tmp_path / 'failing_check.py').write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    task = json.dumps(dict(device='cpu', folder=str(tmp_path), seconds=9))
    (tmp_path / 'r.json').write_text('{"bars": []}')
    words = ['failing_check', str(tmp_path / 'r.json'), task]
    with mock.patch.object(sys, 'argv', ['child', *words]):
        child.main()
    report = json.loads((tmp_path / 'r.json').read_text())
    assert report['error'] == 'ValueError: no' and report['a'] == 1
    assert 'Traceback' in capsys.readouterr().err


@pytest.mark.slow
def test_tool__runs_on_a_cpu_in_small(tmp_path):
    arguments = ['--device', 'cpu', '--minutes', 2, '--out', tmp_path / 'new/out']
    done = run_tool('check_gpu.py', *arguments, '--only', 'ranks', 'operators')
    assert done.returncode == 0, done.stdout + done.stderr
    reports = [
        json.loads((tmp_path / f'new/out/{it}.json').read_text()) for it in ('operators', 'ranks')
    ]
    for report in reports:
        assert report['ok'] and report['seconds'] > 0 and 'error' not in report
        assert {'command', 'date', 'machine'} < report.keys()
        assert sum(it['ok'] is True for it in report['bars']) >= 3
    assert 'operators ok' in done.stdout and 'gloo, all_reduce' in done.stdout


# The checks


def test_operators__each_runs_and_a_wrong_one_is_found(tmp_path):
    task = Task('cpu', str(tmp_path), 60)
    good = [it for part in operators.check(task) for it in part['bars']]
    assert len(good) > 45 and all(it['ok'] is not False for it in good)
    assert {'nms', 'roi_align', 'deform_conv'} <= {it['name'] for it in good if it['ok']}
    calls, original = itertools.count(), ops.roi_align

    def shifted(*args):
        return original(*args) + 1e-3 * (next(calls) % 2)

    with mock.patch.object(ops, 'roi_align', shifted):
        found = [it for part in operators.check(task) for it in part['bars']]
    wrong = [it['name'] for it in found if it['ok'] is False]
    assert 'roi_align' in wrong and all(name.startswith('roi_align') for name in wrong)


def test_memory_ratio__literal(tmp_path):
    subject = Task('cpu', str(tmp_path), 60).subject(96)
    weights = subject.num_bytes()
    maps = sum(it.nbytes for it in subject.teacher_maps()['neck'])
    numbers = subject.model.distill.teacher.load_plain().state_dict().values()
    parts = weights['student'] + 1000 + 2 * sum(it.numel() for it in numbers) + maps
    peak = int(1.5 * parts) - weights['student'] - weights['teacher']
    costs = {'student step': Cost(1, 1, 1, 1000), 'distilled step': Cost(1, 1, 1, peak)}
    assert memory_ratio(subject, costs) == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'finds no GPU; --device cpu runs the same checks in small.'),
        (['--minutes', 0, '--device', 'cpu'], '--minutes must be more than 0, got 0.'),
        (['--device', 'cpu', '--data', 'none'], '--data none has no annotations/train.json.'),
        (['--device', 'cpu', '--out', '/proc/x'], '--out /proc/x cannot be written: '),
    ],
)
def test_tool__wrong_use(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='2'):
        call_tool('check_gpu.py', '--out', tmp_path / 'out', *arguments)
    error = capsys.readouterr().err
    assert message in error and error.startswith('check_gpu.py: ') and error.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_tool__without_the_repository(tmp_path, capsys):
    """As in a wheel, where tools lie beside configs only."""
    (tmp_path / 'tools').mkdir()
    tool = shutil.copy(REPOSITORY / 'tools/check_gpu.py', tmp_path / 'tools')
    with pytest.raises(SystemExit, match='2'):
        call_tool(tool)
    assert capsys.readouterr().err.startswith('check_gpu.py: needs the repository')


@pytest.mark.parametrize('own_data', [False, True])
def test_training__configs_at_full_width(tmp_path, own_data):
    """A training on a GPU: its config builds, runs and reads the data."""
    if own_data:
        data = write_data(tmp_path / 'data')
        (data / 'annotations').mkdir()
        (data / 'annotations.json').rename(data / 'annotations/train.json')
    else:
        data = make_digits(tmp_path / 'data', DigitsOptions(num_train=2, num_val=1))
    task = Task('cuda', str(tmp_path), 60, str(data) if own_data else None)
    for kind, channels in (('teacher', 2048), ('plain', 512), ('distilled', 512)):
        cfg = training.make_config(kind, 3, task, str(data))
        detector = cfg.model.get('student', cfg.model)
        images = DATASETS.build(cfg.train_dataloader.dataset)
        item = images[0]
        samples = [item['data_samples']]
        model = MODELS.build(detector)
        inputs = model.data_preprocessor(dict(inputs=[item['inputs']], data_samples=samples), True)
        with torch.no_grad():
            feats = model.backbone(inputs['inputs'])
            loss = model.bbox_head.loss(model.neck(feats), inputs['data_samples'])
        assert feats[-1].shape[1] == channels and all(it.isfinite() for it in loss.values())
        assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.train_cfg.max_epochs == 3
        assert images.metainfo['classes'] == (CLASSES if own_data else tuple('0123456789'))
    assert cfg.model.teacher.checkpoint == str(tmp_path / 'teacher/epoch_8.pth')
    assert cfg.model.losses.neck.projection.dim == 128
