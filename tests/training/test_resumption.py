"""A checkpoint resumes only with the teacher and the losses that it was trained with."""

import shutil

import pytest
import torch
from mmengine.config import Config
from runs import distilled, fcos, load, run_config, train, write_data, write_teacher

from rdimkd_det import ConfigError
from rdimkd_det.files.checkpoints import digest_of_file


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
    path = str(folder / 'teacher/teacher.pth')
    assert facts.pop("backbone of the teacher's config")['base_channels'] == 16
    assert facts.pop("neck of the teacher's config")['out_channels'] == 24
    assert facts.pop("data_preprocessor of the teacher's config")['bgr_to_rgb'] is True
    assert facts.pop('image_scale of the teacher') == 1
    assert facts == {
        'teacher': f'tensors {digest_of_file(path, ("backbone", "neck"))[:16]}',
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


def saved_again(path):
    """Save a teacher without its optimizer and head, in half as many bytes where that is exact."""
    content = load(path)
    weights = {k: v for k, v in content['state_dict'].items() if not k.startswith('bbox_head')}
    torch.save(dict(state_dict=weights, meta=dict(note='published')), path)


def test_resume__teacher_saved_again_is_the_same(folder, tmp_path):
    cfg = resumed(folder, tmp_path)
    cfg.model.teacher.checkpoint = shutil.copy(cfg.model.teacher.checkpoint, tmp_path)
    saved_again(cfg.model.teacher.checkpoint)
    train(cfg)
    assert load(tmp_path / 'resumed/epoch_2.pth')['meta']['epoch'] == 2


@pytest.mark.parametrize(
    'option, problem',
    [
        ('data_preprocessor.bgr_to_rgb', 'bgr_to_rgb in data_preprocessor of the teacher'),
        ('backbone.deep_stem', 'deep_stem in backbone of the teacher'),
    ],
)
def test_resume__teacher_config_has_changed(folder, tmp_path, option, problem):
    """The weights are equal, and the maps are not."""
    cfg = resumed(folder, tmp_path)
    facts = load(cfg.load_from)
    part, name = option.split('.')
    kept = facts['meta']['distillation'][f"{part} of the teacher's config"]
    kept[name] = not kept.get(name, False)
    cfg.load_from = str(tmp_path / 'changed.pth')
    torch.save(facts, cfg.load_from)
    with pytest.raises(ConfigError, match=f"Its {problem}'s config was"):
        train(cfg)


def test_resume__teacher_options_of_training_only_may_change(folder, tmp_path):
    cfg = resumed(folder, tmp_path)
    teacher = Config.fromfile(cfg.model.teacher.config)
    teacher.model.backbone.update(frozen_stages=1, norm_eval=True, type='mmdet.ResNet')
    teacher.dump(tmp_path / 'teacher.py')
    cfg.model.teacher.config = str(tmp_path / 'teacher.py')
    train(cfg)
    assert load(tmp_path / 'resumed/epoch_2.pth')['meta']['epoch'] == 2


def test_resume__facts_of_earlier_versions_pass(folder, tmp_path):
    cfg = resumed(folder, tmp_path)
    content = load(cfg.load_from)
    content['meta']['distillation'] = {'teacher': '0123456789abcdef'}
    cfg.load_from = str(tmp_path / 'earlier.pth')
    torch.save(content, cfg.load_from)
    train(cfg)
    assert load(tmp_path / 'resumed/epoch_2.pth')['meta']['epoch'] == 2
