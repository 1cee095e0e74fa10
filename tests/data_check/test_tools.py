"""The tools, as a user meets them: one line and status 2, or a warning in the log."""

import copy
import json

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from runs import call_tool, distilled, fcos, write_teacher


@pytest.fixture
def tools(data, tmp_path, capsys):
    """Run a tool on the config; return its status, the last line of stderr, and its output."""
    teacher = write_teacher(tmp_path / 'teacher')

    def tool(name, model='distilled', *args):
        cfg = copy.deepcopy(data.cfg)
        if model == 'distilled':
            cfg.model = distilled(fcos(), teacher)
            cfg.custom_hooks = [dict(type='DistillHook', calibration_images=8)]
        cfg.train_cfg.max_epochs = 1
        cfg.dump(tmp_path / 'config.py')
        first = [tmp_path / 'config.py']
        if name == 'distill.py':
            first += [teacher['config'], teacher['checkpoint']]
        if name == 'test.py':
            init_default_scope('mmdet')
            torch.save(dict(state_dict=MODELS.build(fcos()).state_dict()), tmp_path / 'own.pth')
            first.append(tmp_path / 'own.pth')
        out = ['--out', tmp_path / 'cache'] if name == 'cache_teacher.py' else [
            '--work-dir', tmp_path / 'work']  # fmt: skip
        capsys.readouterr()
        status = 0
        try:
            call_tool(name, *first, *out, *args)
        except SystemExit as stopped:
            status = stopped.code or 0
        captured = capsys.readouterr()
        return status, (captured.err.splitlines() or [''])[-1], captured.out + captured.err

    return tool


def lose(data, split='train', where=lambda n: True):
    data.each(split, lambda entry: entry.update(area=0), where)


@pytest.mark.parametrize(
    'name, model',
    [
        ('train.py', 'plain'),
        ('train.py', 'distilled'),
        ('distill.py', 'plain'),
        ('cache_teacher.py', 'distilled'),
    ],
)
def test_start__all_lost(data, tools, tmp_path, name, model):
    lose(data)
    status, line, _ = tools(name, model)
    assert status == 2
    assert line.startswith(f'{name}: train data: all 24 boxes of {data.path("train")} are lost: ')
    assert not (tmp_path / 'work').exists() and not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('model', ['plain', 'distilled'])
def test_start__some_lost(data, tools, tmp_path, model):
    lose(data, where=lambda n: n % 2)
    data.cfg.log_level = 'INFO'
    status, _, _ = tools('train.py', model)
    assert status == 0
    (log,) = (tmp_path / 'work').rglob('*.log')
    assert '12 have an area of 0 or less' in ' '.join(log.read_text().split())


def test_start__healthy(data, tools, tmp_path):
    status, _, _ = tools('train.py', 'plain')
    assert status == 0
    (log,) = (tmp_path / 'work').rglob('*.log')
    assert 'Data of' not in log.read_text() and ' data: ' not in log.read_text()


def test_test__another_order(data, tools):
    data.change('test', lambda content: content['categories'].reverse())
    status, line, _ = tools('test.py', 'plain')
    assert status == 2 and line.startswith("test.py: test data: label 0 is 'blue' in ")


def test_preflight__tells_all_errors(data, tools, tmp_path):
    lose(data)
    for name in ('3.png', 'unseen_3.png'):
        (data.root / 'images' / name).unlink()
    json_file = tmp_path / 'report.json'
    status, _, out = tools('preflight.py', 'distilled', '--json', json_file)
    assert status == 1
    report = json.loads(json_file.read_text())
    errors = [it for it in report['findings'] if it['severity'] == 'error']
    errors = [it for it in errors if it['topic'] != 'Teacher weights']  # which are random
    assert [it['topic'] for it in errors] == ['Boxes', 'Images', 'Images', 'Images']
    train, val, _ = report['figures']['data']['sets']
    assert train['lost'] == {'area 0': 24} and val['num_objects'] == 24
    assert any(it['count'] == 24 for it in report['figures']['data']['findings'])
    assert 'area 0 24' in out and 'Objects by class' in out


def test_preflight__healthy(data, tools, tmp_path):
    *_, out = tools('preflight.py', 'distilled', '--samples', 0)
    told = [line.split()[:2] for line in out.splitlines() if line.startswith(('  warn', '  err'))]
    assert told == [['error', 'Teacher']]  # whose weights are random
