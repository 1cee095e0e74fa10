"""A resumed training says what it keeps of its checkpoint, and what the config changes."""

import tempfile
from pathlib import Path

import pytest
from runs import distilled, fcos, run_config, train, write_data, write_teacher

from rdimkd_det import DistillHook

STEPS = dict(type='MultiStepLR', milestones=[1, 2], end=2, gamma=0.1)
FADING = dict(decay='linear')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Data, a teacher, and a run that was stopped after one of two epochs."""
    folder = tmp_path_factory.mktemp('changes')
    write_data(folder / 'data')
    write_teacher(folder / 'teacher')
    train(config(folder, folder / 'run'))
    return folder


def config(folder, work_dir, schedule=FADING, max_epochs=2, **overrides):
    files = dict(
        config=str(folder / 'teacher/teacher.py'), checkpoint=str(folder / 'teacher/teacher.pth')
    )
    model = distilled(fcos(), files)
    cfg = run_config(folder / 'data', work_dir, model, max_epochs, param_scheduler=[dict(STEPS)])
    cfg.custom_hooks[0].schedule = schedule
    cfg.train_cfg.val_interval = 100
    cfg.merge_from_dict(overrides)
    return cfg


@pytest.fixture
def resumed(folder, tmp_path):
    """Resume after the first of two epochs; return the warnings about what goes on."""

    def resumed(**options) -> list[str]:
        cfg = config(folder, Path(tempfile.mkdtemp(dir=tmp_path)), **options)
        cfg.resume, cfg.load_from = True, str(folder / 'run/epoch_1.pth')
        train(cfg)
        (log,) = Path(cfg.work_dir).glob('*/*.log')
        lines = log.read_text().splitlines()
        return [line for line in lines if 'goes on with' in line or 'continues at' in line]

    return resumed


def test_same_config__says_nothing(resumed):
    assert resumed() == []


def test_plateau__what_it_has_seen_is_no_change(folder, tmp_path):
    plateau = dict(type='ReduceOnPlateauLR', monitor='coco/bbox_mAP', rule='greater')
    options = {'param_scheduler': [plateau], 'train_cfg.val_interval': 1}
    whole = config(folder, tmp_path / 'run', **options)
    train(whole)
    train(config(folder, tmp_path / 'run', **options, resume=True))
    logs = ''.join(path.read_text() for path in (tmp_path / 'run').glob('*/*.log'))
    assert 'goes on with' not in logs and 'nothing is left to train' in logs


def test_longer__of_a_constant_weight_and_the_same_schedule_says_nothing(folder, tmp_path):
    whole = config(folder, tmp_path / 'run', schedule=None)
    train(whole)
    more = config(folder, tmp_path / 'run', schedule=None, max_epochs=3, resume=True)
    train(more)
    logs = ''.join(path.read_text() for path in (tmp_path / 'run').glob('*/*.log'))
    assert 'goes on with' not in logs and 'continues at' not in logs


def test_other_milestones(resumed):
    (line,) = resumed(param_scheduler=[{**STEPS, 'milestones': [5, 8]}], max_epochs=2)
    assert 'the checkpoint goes on with MultiStepLR.milestones [1, 2] (this config has [5, 8])' in (
        line
    )
    assert 'load_from=' in line and 'without --resume' in line and 'factor' not in line


def test_other_optimizer_options(resumed):
    (line,) = resumed(**{'optim_wrapper.optimizer.momentum': 0.5})
    assert 'optimizer.momentum 0.9 (this config has 0.5)' in line
    (line,) = resumed(**{'optim_wrapper.optimizer.lr': 0.02})
    assert 'base_values 0.01 (this config has 0.02)' in line
    options = {'weight_decay': 0.5, 'lr': 0.02, 'nesterov': True, 'dampening': 0, 'momentum': 0.5}
    (line,) = resumed(**{f'optim_wrapper.optimizer.{key}': it for key, it in options.items()})
    order = [line.index(f'optimizer.{key}') for key in ('lr', 'momentum', 'nesterov')]
    assert order == sorted(order) and 'optimizer.weight_decay' not in line  # the fifth


def test_longer__the_factor_jumps(resumed):
    (line,) = resumed(max_epochs=4)
    assert "the distillation's factor was 0.5 and continues at 0.75" in line
    assert '(max_epochs was 2, is 4, max_iters was 4, is 8)' in line
    assert 'load_from' not in line  # the distillation follows this config


@pytest.mark.parametrize('batch_size', [1, 2, 8])
def test_other_length_of_an_epoch__the_schedule_goes_on_where_it_was(
    resumed, monkeypatch, batch_size
):
    """An epoch had 2 iterations; a batch of 8, or twice the GPUs, leaves one."""
    factors, apply = [], DistillHook._apply_schedule

    def record(self, runner, distill):
        factors.append(apply(self, runner, distill))
        return factors[-1]

    monkeypatch.setattr(DistillHook, '_apply_schedule', record)
    assert resumed(**{'train_dataloader.batch_size': batch_size}) == []
    each = 8 // batch_size  # the second half of a decay over two epochs; first, before training
    assert factors == pytest.approx([0.5, *(0.5 - 0.5 * it / each for it in range(each))])


def test_other_schedule_of_the_distillation(resumed):
    (line,) = resumed(schedule=dict(decay='cosine', decay_begin=1, stop=2))
    assert 'factor was 0.5 and continues at 1' in line
