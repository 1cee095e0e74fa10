"""A checkpoint resumes only with the teacher and the losses that it was trained with."""

import shutil

import pytest
import torch
from runs import distilled, fcos, load, run_config, train, write_data, write_teacher

from rdimkd_det import ConfigError
from rdimkd_det.files.checkpoints import fingerprint


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Data, two teachers of one architecture, and a run of one epoch."""
    folder = tmp_path_factory.mktemp('resumption')
    write_data(folder / 'data')
    for teacher in ('teacher', 'other'):
        write_teacher(folder / teacher)
    weights = load(folder / 'other/teacher.pth')
    weights['state_dict']['neck.lateral_convs.0.conv.bias'] += 0.1
    torch.save(weights, folder / 'other/teacher.pth')
    train(config(folder))
    return folder


def config(folder, teacher='teacher', max_epochs=1, **loss):
    teacher = folder / teacher
    files = dict(config=str(teacher / 'teacher.py'), checkpoint=str(teacher / 'teacher.pth'))
    model = distilled(fcos(), files, **loss)
    return run_config(folder / 'data', folder / 'run', model, max_epochs)


def resumed(folder, tmp_path, **options):
    cfg = config(folder, max_epochs=2, **options)
    cfg.resume, cfg.load_from = True, str(folder / 'run/epoch_1.pth')
    cfg.work_dir = str(tmp_path / 'resumed')
    return cfg


def test_facts__stand_in_the_checkpoint(folder):
    facts = load(folder / 'run/epoch_1.pth')['meta']['distillation']
    assert facts == {
        'teacher': fingerprint(str(folder / 'teacher/teacher.pth')),
        "projection at 'neck'": 'PCAProjection, dim 8',
        "normalize at 'neck'": 'standardize',
    }


@pytest.mark.parametrize(
    'options, problem',
    [
        (dict(projection=dict(type='PCAProjection', dim=4)), 'PCAProjection, dim 8, here it is'),
        (dict(projection=dict(type='AutoencoderProjection', dim=8)), 'it is AutoencoderProjection'),
        (dict(normalize='teacher'), "normalize at 'neck' was standardize, here it is teacher"),
        (dict(teacher='other'), 'Its teacher was'),
    ],
)
def test_resume__of_another_training_is_refused(folder, tmp_path, options, problem):
    with pytest.raises(ConfigError, match=f'another teacher or other losses .*{problem}'):
        train(resumed(folder, tmp_path, **options))


def test_resume__weights_may_change_and_files_may_move(folder, tmp_path):
    cfg = resumed(folder, tmp_path, loss_weight=0.5)
    moved = shutil.copy(cfg.model.teacher.checkpoint, tmp_path / 'moved.pth')
    cfg.model.teacher.checkpoint = str(moved)
    train(cfg)
    assert load(tmp_path / 'resumed/epoch_2.pth')['meta']['epoch'] == 2
