"""Hundreds of configs with one mistake each: a one-line message or a run, never a traceback."""

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
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mutants import mutants
from runs import CLASSES, call_tool, distilled, fcos, load, run_config, write_data, write_teacher
from yapf.yapflib import yapf_api

SECONDS = 60  # for one config: it takes about one
VERDICTS = ('All is well.\n', 'see the lines marked ->.\n')  # the last line of preflight's report


class Hang(BaseException):
    """Not an ``Exception``, so that no code reports it as a mistake in the config."""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """Return a config of one iteration with as many of the package's options as possible."""
    folder = tmp_path_factory.mktemp('fuzz')
    teacher = write_teacher(folder / 'teacher')
    checkpoint = load(teacher['checkpoint'])
    checkpoint['meta']['dataset_meta'] = dict(classes=CLASSES)  # for its AP
    torch.save(checkpoint, teacher['checkpoint'])
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
    content['custom_hooks'].append(switch_hook(content, epoch=0))
    content['train_cfg'] = dict(
        type='IterBasedTrainLoop', max_iters=1, val_interval=1, dynamic_intervals=[(1, 1)]
    )
    content['log_processor'] = dict(type='LogProcessor', by_epoch=False, window_size=1)
    content['train_dataloader']['batch_size'] = 2
    content['default_hooks']['checkpoint'].update(
        by_epoch=False, max_keep_ckpts=1, filename_tmpl='iter_{}.pth', save_best='coco/bbox_mAP'
    )
    return content


def switch_hook(content: dict, epoch: int) -> dict:
    """Return mmdet's hook that switches the pipeline, here to the same pipeline."""
    pipeline = copy.deepcopy(content['train_dataloader']['dataset']['pipeline'])
    return dict(type='PipelineSwitchHook', switch_epoch=epoch, switch_pipeline=pipeline)


@pytest.fixture
def judge(tmp_path, capsys, monkeypatch):
    """Call a tool on a config; return the problem with how it ended, or None, and its line."""
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

    def judge(content: dict, tool: str = 'train.py', *args) -> tuple[str | None, str]:
        path = tmp_path / 'changed.py'
        path.write_text('\n'.join(f'{key} = {value!r}' for key, value in content.items()))
        capsys.readouterr()
        signal.alarm(SECONDS)
        try:
            call_tool(tool, path, '--work-dir', tmp_path / 'work', *args)
            return None, ''
        except SystemExit as stopped:
            said = capsys.readouterr()
            if tool == 'preflight.py' and stopped.code in (0, 1) and said.out.endswith(VERDICTS):
                return None, ''
            lines = said.err.splitlines() or ['']
            good = stopped.code in (1, 2) and len(lines) == 1 and lines[0].startswith(f'{tool}: ')
            return None if good else f'exit status {stopped.code}, {len(lines)} lines', lines[-1]
        except BaseException as error:
            return f'raised {type(error).__name__}: {error}', ''
        finally:
            signal.alarm(0)
            torch.use_deterministic_algorithms(False)

    logger = MMLogger.get_current_instance()
    level = logger.level
    before = signal.signal(signal.SIGALRM, stop)
    yield judge
    signal.signal(signal.SIGALRM, before)
    logger.setLevel(level)
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.parametrize(
    'below, number, seed',
    [
        ('model.losses', 25, 0),
        ('model.teacher', 10, 0),
        ('custom_hooks', 20, 0),
        ('default_hooks', 20, 7),
        ('train_cfg', 15, 7),
        ('log_processor', 15, 7),
        ('', 35, 0),
        ('', 20, 7),
    ],
)
def test_fuzz__one_line_or_a_run(config, judge, below, number, seed):
    wrong = []
    for what, content in mutants(config, number, below, seed):
        problem, line = judge(content)
        if problem is not None:
            wrong.append(f'{what}: {problem}: {line}')
    assert not wrong, '\n'.join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    'below, number',
    [('', 12), ('train_dataloader', 10), ('val_dataloader', 10), ('val_evaluator', 6)],
)
def test_fuzz__one_line_or_a_report(config, judge, below, number):
    """Preflight runs the parts of a training, and of the validation."""
    wrong = []
    for what, content in mutants(config, number, below, seed=3):
        problem, line = judge(content, 'preflight.py', '--samples', 4, '--eval-teacher')
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
        ('default_hooks.checkpoint', 'max_keep_ckpt', 'max_keep_ckpts'),
        ('default_hooks.checkpoint', 'intervall', 'interval'),
        ('default_hooks.checkpoint', 'bby_epoch', 'by_epoch'),
        ('default_hooks.logger', 'intervall', 'interval'),
    ],
)
def test_misspelled_option__did_you_mean(config, judge, place, option, meant):
    content = copy.deepcopy(config)
    entry = find(content, place)
    entry[option] = entry.pop(meant)
    problem, line = judge(content)
    assert problem is None and f"'{option}'; did you mean '{meant}'?" in line


def test_misspelled_key__did_you_mean(config, judge, tmp_path):
    problem, line = judge({**config, 'param_schedular': []})
    assert problem is None and "'param_schedular'; did you mean 'param_scheduler'?" in line
    assert not (tmp_path / 'work').exists()


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
        ('default_scope', 5),
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
    """Otherwise the training would end in a traceback after its first epoch."""
    content = copy.deepcopy(config)
    content['model']['student']['test_cfg']['nms']['type'] = 'nmss'
    problem, line = judge(content)
    assert problem is None and 'the config cannot be run' in line
    where = re.search(r'\(traceback: (.*)\)', line)[1]
    assert 'Traceback' in Path(where).read_text()
    assert (tmp_path / 'work/iter_1.pth').exists()


@pytest.mark.parametrize(
    'option, value',
    [('interval', 'a'), ('filename_tmpl', 'last.pth'), ('filename_tmpl', '{a}.pth')],
)
def test_checkpoint_hook__option_of_another_kind(config, judge, tmp_path, option, value):
    content = copy.deepcopy(config)
    content['default_hooks']['checkpoint'][option] = value
    problem, line = judge(content)
    assert problem is None and f'default_hooks.checkpoint.{option} must' in line
    assert repr(value) in line and not (tmp_path / 'work').exists()


def test_pipeline_to_switch_to__cannot_be_built(config, judge, tmp_path):
    content = copy.deepcopy(config)
    content['custom_hooks'][1] = switch_hook(content, epoch=280)
    content['custom_hooks'][1]['switch_pipeline'][1]['type'] = 'Resizee'
    problem, line = judge(content)
    assert problem is None and "did you mean 'Resize'?" in line
    assert 'custom_hooks.switch_pipeline' in line and not (tmp_path / 'work').exists()


def of_epochs(config: dict, number: int, **train_cfg) -> dict:
    """Return the config with epochs of two iterations and one validation at the end."""
    content = copy.deepcopy(config)
    train_cfg = {'val_interval': number, **train_cfg}
    content['train_cfg'] = dict(type='EpochBasedTrainLoop', max_epochs=number, **train_cfg)
    content['custom_hooks'] = content['custom_hooks'][:1]
    del content['custom_hooks'][0]['schedule']
    content['default_hooks']['checkpoint'].update(by_epoch=True, interval=number)
    return content


def first_log(config: dict) -> dict:
    content = of_epochs(config, 1)
    content['default_hooks']['logger']['interval'] = 2
    content['log_processor']['window_size'] = 'a'
    return content


@HOOKS.register_module()
class FailsToSave(Hook):
    """Fails while it adds to a checkpoint."""

    def before_save_checkpoint(self, runner, checkpoint):
        raise KeyError('nothing to save')


def first_checkpoint(config: dict) -> dict:
    content = of_epochs(config, 2)
    content['custom_hooks'].append(dict(type='FailsToSave'))
    return content


def first_epoch_end(config: dict) -> dict:
    return of_epochs(config, 2, val_interval='a')


def first_best(config: dict) -> dict:
    content = of_epochs(config, 2)
    content['default_hooks']['checkpoint'].update(interval=1, save_best='coco/bbox_mAPP')
    return content


def first_batch_of_another_pipeline(config: dict) -> dict:
    content = of_epochs(config, 2)
    content['custom_hooks'].append(switch_hook(content, epoch=1))
    content['custom_hooks'][1]['switch_pipeline'][1]['scale'] = 'abc'
    return content


@pytest.mark.slow
@pytest.mark.parametrize(
    'change',
    [
        first_log,
        first_checkpoint,
        first_epoch_end,
        first_best,
        first_batch_of_another_pipeline,
    ],
)
def test_first_time_later__fails_in_one_line(config, judge, change):
    problem, line = judge(change(config))
    assert problem is None and 'the config cannot be run' in line


@HOOKS.register_module()
class FailsLate(Hook):
    """Fails after some iterations, for a reason other than the config."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 2:
            raise RuntimeError('the machine is on fire')


@pytest.mark.slow
def test_second_time__keeps_its_traceback(config, judge):
    content = of_epochs(config, 2)
    content['custom_hooks'].append(dict(type='FailsLate'))
    problem, _ = judge(content)
    assert problem == 'raised RuntimeError: the machine is on fire'
