"""Hundreds of configs with one mistake each: one line that says so, or a run; never a traceback."""

import copy
import gc
import logging
import re
import signal
from pathlib import Path

import mmengine.config.config
import mmengine.runner.runner
import pytest
import torch
from mutants import mutants
from runs import call_tool, distilled, fcos, run_config, write_data, write_teacher
from yapf.yapflib import yapf_api

SECONDS = 60  # for one config: it takes about one


class Hang(BaseException):
    """No ``Exception``: nothing may take it for a mistake in the config."""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A config of one iteration with as many of our options as go together."""
    folder = tmp_path_factory.mktemp('fuzz')
    teacher = write_teacher(folder / 'teacher')
    model = distilled(
        fcos(),
        dict(teacher),
        loss_weight={8: 1.0, 16: 0.5, 32: 0.25},
        normalize='teacher',
        momentum=0.1,
        auto_share=1.0,
        resize='student',
        teacher_module='neck',
    )
    model.inherit = ['bbox_head.conv_cls']
    data = write_data(folder / 'data', num_images=4)
    content = run_config(data, folder / 'unused', model).to_dict()
    for name in ('work_dir', 'test_dataloader', 'test_cfg', 'test_evaluator'):
        del content[name]
    schedule = dict(warmup=1, decay='linear', decay_begin=2, stop=4, by_epoch=False)
    content['custom_hooks'][0].update(calibration_images=4, seed=0, schedule=schedule)
    content['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=1, val_interval=1)
    content['train_dataloader']['batch_size'] = 2
    content['default_hooks']['checkpoint']['by_epoch'] = False
    return content


@pytest.fixture
def judge(tmp_path, capsys, monkeypatch):
    """Calls train.py on a config; returns what is wrong with how it ended, and the line."""
    # What takes most of the time of so short a run: laying out config texts, collecting all the
    # garbage for each data set, and asking the compiler for its version.
    for module in (mmengine.config.config, yapf_api):  # OpenMMLab's, OneDL's mmengine
        monkeypatch.setattr(module, 'FormatCode', lambda text, **_: (text, True), raising=False)
    monkeypatch.setattr(mmengine.runner.runner, 'collect_env', dict)
    # mmengine's loggers write to the output of the test in which they were made.
    monkeypatch.setattr(logging, 'raiseExceptions', False)
    gc.freeze()

    def stop(*args):
        raise Hang

    def judge(content: dict) -> tuple[str | None, str]:
        path = tmp_path / 'changed.py'
        path.write_text('\n'.join(f'{key} = {value!r}' for key, value in content.items()))
        capsys.readouterr()
        signal.alarm(SECONDS)
        try:
            call_tool('train.py', path, '--work-dir', tmp_path / 'work')
            return None, ''
        except SystemExit as stopped:
            lines = capsys.readouterr().err.splitlines()
            good = stopped.code in (1, 2) and len(lines) == 1 and lines[0].startswith('train.py: ')
            return None if good else f'exit status {stopped.code}, {len(lines)} lines', lines[-1]
        except BaseException as error:
            return f'raised {type(error).__name__}: {error}', ''
        finally:
            signal.alarm(0)
            torch.use_deterministic_algorithms(False)

    before = signal.signal(signal.SIGALRM, stop)
    yield judge
    signal.signal(signal.SIGALRM, before)
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.parametrize(
    'below, number',
    [('model.losses', 60), ('model.teacher', 10), ('custom_hooks', 50), ('', 100)],
)
def test_fuzz__one_line_or_a_run(config, judge, below, number):
    wrong = []
    for what, content in mutants(config, number, below):
        problem, line = judge(content)
        if problem is not None:
            wrong.append(f'{what}: {problem}: {line}')
    assert not wrong, '\n'.join(wrong)


@pytest.mark.slow
def test_fuzz__the_config_itself_runs(config, judge):
    assert judge(config) == (None, '')


OF_LOSS = 'model.losses.neck'


@pytest.mark.parametrize(
    'place, name, meant',
    [
        ('model', 'RdimKDDistilller', 'RdimKDDistiller'),
        ('model.student', 'FCSO', 'FCOS'),
        ('model.student.backbone', 'RezNet', 'ResNet'),
        (OF_LOSS, 'RdimKdLoss', 'RdimKDLoss'),
        (f'{OF_LOSS}.projection', 'PcaProjection', 'PCAProjection'),
        ('custom_hooks.0', 'DistilHook', 'DistillHook'),
        ('optim_wrapper', 'OptimWraper', 'OptimWrapper'),
        ('optim_wrapper.optimizer', 'SSGD', 'SGD'),
        ('train_cfg', 'IterBasedTrainLop', 'IterBasedTrainLoop'),
        ('train_dataloader.dataset', 'CocoDatset', 'CocoDataset'),
        ('train_dataloader.dataset.pipeline.1', 'Resizee', 'Resize'),
        ('default_hooks.logger', 'LogerHook', 'LoggerHook'),
    ],
)
def test_misspelled_type__did_you_mean(config, judge, place, name, meant):
    content = copy.deepcopy(config)
    find(content, place)['type'] = name
    problem, line = judge(content)
    assert problem is None and f"did you mean '{meant}'?" in line


@pytest.mark.parametrize(
    'place, option, meant',
    [
        ('model', 'loses', 'losses'),
        ('model.teacher', 'check_point', 'checkpoint'),
        (OF_LOSS, 'normalise', 'normalize'),
        (OF_LOSS, 'loss_wieght', 'loss_weight'),
        (f'{OF_LOSS}.projection', 'dims', 'dim'),
        ('custom_hooks.0', 'calibration_image', 'calibration_images'),
        ('custom_hooks.0.schedule', 'warm_up', 'warmup'),
    ],
)
def test_misspelled_option__did_you_mean(config, judge, place, option, meant):
    content = copy.deepcopy(config)
    entry = find(content, place)
    entry[option] = entry.pop(meant)
    problem, line = judge(content)
    assert problem is None and f"'{option}'; did you mean '{meant}'?" in line


def find(content: dict, place: str) -> dict:
    for key in place.split('.'):
        content = content[int(key) if key.isdigit() else key]
    return content


@pytest.mark.parametrize(
    'section, value',
    [
        ('optim_wrapper', 'zebra'),
        ('val_dataloader', True),
        ('train_dataloader', [1]),
        ('default_scope', None),
    ],
)
def test_section__of_another_kind(config, judge, section, value):
    problem, line = judge({**config, section: value})
    assert problem is None and f'{section} must be' in line and repr(value) in line


@pytest.mark.parametrize('length', [0, -1, 1.5, True, 'many'])
def test_training__without_length(config, judge, length):
    problem, line = judge({**config, 'train_cfg': {**config['train_cfg'], 'max_iters': length}})
    assert problem is None and 'max_iters must be a whole number of 1 or more' in line


@pytest.mark.slow
def test_first_validation__fails_in_one_line(config, judge, tmp_path):
    """As a training that would end in a traceback after its first epoch."""
    content = copy.deepcopy(config)
    content['model']['student']['test_cfg']['nms']['type'] = 'nmss'
    problem, line = judge(content)
    assert problem is None and 'the config cannot be run' in line
    where = re.search(r'\(Where: (.*)\)', line)[1]
    assert 'Traceback' in Path(where).read_text()
    assert (tmp_path / 'work/iter_1.pth').exists()
