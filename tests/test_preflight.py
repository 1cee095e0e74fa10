"""Preflight, with a teacher that was actually trained: to tell colours of boxes apart."""

from __future__ import annotations

import io
import json
import logging
import random
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cached_runs import cached_run, make_cache, write_files
from detectors import teacher_files
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import set_random_seed
from rich.console import Console
from runs import CLASSES, call_tool, distilled, fcos, load, run_config, run_tool, train, write_data
from torch import nn

from rdimkd_det.commands import launch
from rdimkd_det.distiller import distilled_student
from rdimkd_det.preflight import fingerprint, static_report
from rdimkd_det.preflight.classes import data_classes, label_map, num_classes
from rdimkd_det.preflight.detector import build_detector
from rdimkd_det.preflight.fingerprint import InputScore, batch_norms, better_input, divergence
from rdimkd_det.preflight.inputs import IMAGENET, WELL_KNOWN, InputFormat, candidates
from rdimkd_det.preflight.report import Report
from rdimkd_det.preflight.samples import load_samples, prepare
from rdimkd_det.preflight.teacher_eval import TeacherAPs, judge_aps
from rdimkd_det.teacher import Teacher

TEACHER = dict(base_channels=16, fpn_channels=24)
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return a data set, and the checkpoint of an FCOS trained on it for 150 iterations."""
    folder = tmp_path_factory.mktemp('trained')
    data = write_data(folder / 'data', num_images=24)
    config = run_config(data, folder / 'work', fcos(**TEACHER), max_epochs=25)
    config.optim_wrapper.optimizer = dict(type='Adam', lr=0.002)
    config.default_hooks.checkpoint.interval = 25
    config.train_cfg.val_interval = 100
    train(config)
    return SimpleNamespace(data=data, checkpoint=folder / 'work/epoch_25.pth')


@pytest.fixture
def config(trained, tmp_path):
    """Write a distilled config with a modified teacher's ``data_preprocessor``; return its path."""

    def config(change=None, checkpoint=trained.checkpoint, **preprocessor) -> Path:
        teacher = run_config(trained.data, tmp_path / 'unused', fcos(**TEACHER))
        teacher.model.data_preprocessor.update(preprocessor)
        teacher.dump(tmp_path / 'teacher.py')
        files = dict(config=str(tmp_path / 'teacher.py'), checkpoint=str(checkpoint))
        cfg = run_config(trained.data, tmp_path / 'work', distilled(fcos(), files))
        if change is not None:
            change(cfg)
        cfg.dump(tmp_path / 'config.py')
        return tmp_path / 'config.py'

    return config


@pytest.fixture
def preflight(config, tmp_path, capsys):
    """Run the tool on a config written by :func:`config`; return its status, output and report."""
    logger = MMLogger.get_current_instance()
    level = logger.level

    def preflight(*args, **options) -> SimpleNamespace:
        path, written = config(**options), tmp_path / 'report.json'
        written.unlink(missing_ok=True)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            call_tool('preflight.py', path, *args, '--json', written)
        captured = capsys.readouterr()
        report = json.loads(written.read_text()) if written.exists() else None
        return SimpleNamespace(
            status=stopped.value.code, out=captured.out, err=captured.err, report=report
        )

    yield preflight
    logger.setLevel(level)


def found(done, severity: str) -> dict[str, tuple[str, str]]:
    """Return the findings of a severity, topic to text and remedy."""
    return {
        finding['topic']: (finding['text'], finding['remedy'])
        for finding in done.report['findings']
        if finding['severity'] == severity
    }


def random_weights(folder: Path) -> Path:
    """Write a checkpoint of the same architecture with random weights."""
    model = MODELS.build(fcos(**TEACHER))
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta=dict()), folder / 'random.pth')
    return folder / 'random.pth'


# The four that must be told apart


@pytest.mark.smoke
def test_preflight__all_is_well(preflight, trained):
    done = preflight('--eval-teacher')
    assert done.status == 0 and done.report['passed'], done.out
    assert {finding['severity'] for finding in done.report['findings']} == {'ok'}
    fine = found(done, 'ok')
    keys = [k for k in load(trained.checkpoint)['state_dict'] if not k.startswith('bbox_head')]
    assert f'epoch_25.pth: {len(keys)} of {len(keys)} keys' in fine['Teacher weights'][0]
    assert fine['Teacher classes'][0] == 'the same'
    assert 'the bridge has nothing to do' in fine['Input'][0]
    ap = done.report['figures']['teacher_ap']['Teacher AP']
    assert ap['own'] == ap['bridge'] > 0.25
    # It fits on a screen, without colours.
    assert len(done.out.splitlines()) <= 40 and '\x1b' not in done.out
    assert done.out.splitlines()[-1] == 'All is well.'
    assert done.err == ''


@pytest.mark.slow
def test_preflight__as_a_process_says_nothing_else(config):
    """PyTorch would warn about meshgrid and, with other detectors, log a line of its profiler."""
    done = run_tool('preflight.py', config())
    assert done.returncode == 0 and done.stderr == ''
    assert done.stdout.startswith('RdimKD preflight of ')


def test_preflight__swapped_channels(preflight, tmp_path):
    done = preflight('--eval-teacher', bgr_to_rgb=False)
    assert done.status == 1
    errors = found(done, 'error')
    assert errors.keys() == {"Teacher's input", 'Teacher AP'}
    text, remedy = errors["Teacher's input"]
    assert text.startswith('looks like swapped channels')
    assert remedy.startswith('set bgr_to_rgb=True in the data_preprocessor')
    assert remedy.endswith(str(tmp_path / 'teacher.py'))
    # The AP tells as well: red and blue are taken for each other.
    ap = done.report['figures']['teacher_ap']['Teacher AP']
    assert ap['bridge'] == ap['own'] < 0.7 * ap['corrected']


@pytest.mark.parametrize(
    'preprocessor',
    [CAFFE, dict(mean=[0.0] * 3, std=[255.0] * 3), dict(mean=None, std=None, bgr_to_rgb=False)],
    ids=['caffe', 'from 0 to 1', 'from 0 to 255'],
)
def test_preflight__wrong_normalisation(preflight, preprocessor):
    done = preflight(**preprocessor)
    assert done.status == 1
    errors = found(done, 'error')
    assert errors.keys() == {"Teacher's input"}
    text, remedy = errors["Teacher's input"]
    assert text.startswith("looks like another normalisation, 'torchvision, RGB'")
    assert 'mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True' in remedy


@pytest.mark.smoke
def test_preflight__untrained_checkpoint(preflight, tmp_path):
    done = preflight('--eval-teacher', checkpoint=random_weights(tmp_path))
    assert done.status == 1
    errors = found(done, 'error')
    assert errors.keys() == {'Teacher weights', 'Teacher AP'}
    text, remedy = errors['Teacher weights']
    assert 'random.pth looks untrained: every bias of backbone and neck is exactly 0' in text
    assert 'model.teacher.checkpoint' in remedy
    assert 'not trained, not of these data' in errors['Teacher AP'][0]


def test_preflight__untrained_neck(preflight, trained, tmp_path):
    weights = load(trained.checkpoint)['state_dict']
    for key, value in weights.items():
        if key.startswith('neck.') and key.endswith('.bias'):
            value.zero_()
    torch.save(dict(state_dict=weights), tmp_path / 'half.pth')
    done = preflight('--samples', 0, checkpoint=tmp_path / 'half.pth')
    assert 'every bias of neck is exactly 0' in found(done, 'error')['Teacher weights'][0]


# Without BatchNorm statistics


def folded(trained, folder: Path) -> Path:
    """Write the checkpoint with BatchNorm statistics folded into the affine parameters.

    Detectron2's checkpoints are like this.
    """
    checkpoint = load(trained.checkpoint)
    weights = checkpoint['state_dict']
    for key in [key for key in weights if key.endswith('running_mean')]:
        norm = key.rsplit('.', 1)[0]
        scale = weights[f'{norm}.weight'] / (weights[f'{norm}.running_var'] + 1e-5).sqrt()
        weights[f'{norm}.bias'] -= weights[f'{norm}.running_mean'] * scale
        weights[f'{norm}.weight'] = scale
        weights[f'{norm}.running_mean'].zero_()
        weights[f'{norm}.running_var'].fill_(1)
    torch.save(checkpoint, folder / 'folded.pth')
    return folder / 'folded.pth'


def test_preflight__folded_batch_norm(preflight, trained, tmp_path):
    """Only the teacher's loss can be used, and it detects wrong channels and normalisation."""
    checkpoint = folded(trained, tmp_path)
    done = preflight(checkpoint=checkpoint)
    assert done.status == 0, done.out
    assert "the teacher's loss" in found(done, 'ok')["Teacher's input"][0]
    assert 'divergence' not in found(done, 'ok')["Teacher's input"][0]
    swapped = found(preflight(checkpoint=checkpoint, bgr_to_rgb=False), 'error')
    assert swapped["Teacher's input"][0].startswith('looks like swapped channels')
    caffe = found(preflight(checkpoint=checkpoint, **CAFFE), 'error')
    assert "'torchvision, RGB'" in caffe["Teacher's input"][0]


def of_animals(checkpoint: Path) -> Path:
    """Write the checkpoint with classes that are not in the data."""
    content = load(checkpoint)
    content['meta']['dataset_meta'] = dict(classes=('cat', 'dog', 'cow'))
    torch.save(content, checkpoint.with_name('animals.pth'))
    return checkpoint.with_name('animals.pth')


def test_preflight__statistics_without_a_class_in_common(preflight, trained):
    done = preflight(checkpoint=of_animals(trained.checkpoint), **CAFFE)
    text, _ = found(done, 'error')["Teacher's input"]
    assert "'torchvision, RGB': divergence" in text and "the teacher's loss" not in text


def test_preflight__nothing_to_go_by(preflight, trained, tmp_path):
    """Without statistics and common classes, the input and the AP cannot be checked."""
    done = preflight('--eval-teacher', checkpoint=of_animals(folded(trained, tmp_path)))
    warnings = found(done, 'warning')
    assert done.status == 0  # feature maps carry over
    assert warnings.keys() == {'Teacher classes', "Teacher's input", 'Teacher AP'}
    assert "knows 0 of the data set's 3, not red, green, blue" in warnings['Teacher classes'][0]
    assert 'cannot be checked' in warnings["Teacher's input"][0]
    assert warnings['Teacher AP'][0] == 'cannot be measured: no class in common'


@pytest.mark.parametrize(
    'options, severity', [({}, 'warning'), (dict(mean=[0.0, 0.0, 0.0]), 'error')]
)
def test_preflight__says_why_the_loss_was_not_measured(preflight, monkeypatch, options, severity):
    def fails(instances, size):
        raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB.')

    monkeypatch.setattr(fingerprint, 'with_masks', fails)
    done = preflight(**options)
    (finding,) = (it for it in done.report['findings'] if it['topic'] == "Teacher's input")
    assert finding['severity'] == severity
    assert 'divergence' in finding['text'] and "the teacher's loss" not in finding['text']
    assert finding['text'].endswith(
        '; its own loss could not be measured: '
        'RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB.'
    )


def test_preflight__neither_statistics_nor_loss(preflight, trained, tmp_path, monkeypatch):
    def fails(instances, size):
        raise KeyError('the annotations have no masks')

    monkeypatch.setattr(fingerprint, 'with_masks', fails)
    done = preflight(checkpoint=folded(trained, tmp_path))
    text, _ = found(done, 'warning')["Teacher's input"]
    assert text == (
        'cannot be checked: the teacher has no BatchNorm statistics of its training; its own loss '
        'could not be measured: KeyError: the annotations have no masks'
    )


# The weights that the student starts from


def start_from(path: Path, **head):
    """Return a function that gives a config's student the teacher's architecture and weights."""

    def change(cfg):
        cfg.model.student = fcos(**TEACHER)
        cfg.model.student.bbox_head.update(head)
        cfg.load_from = str(path)

    return change


def test_load_from__all_keys(preflight, trained):
    done = preflight('--samples', 0, change=start_from(trained.checkpoint))
    keys = len(load(trained.checkpoint)['state_dict'])
    text, _ = found(done, 'ok')['load_from']
    assert text == f'epoch_25.pth: {keys} of {keys} keys of the student match'


def test_load_from__of_other_classes(preflight, trained):
    """As in training, the classifier starts anew; everything else has the given weights."""
    done = preflight('--samples', 4, change=start_from(trained.checkpoint, num_classes=7))
    keys = len(load(trained.checkpoint)['state_dict'])
    text, remedy = found(done, 'warning')['load_from']
    assert text == (
        f'epoch_25.pth: {keys - 2} of {keys} keys of the student match; not '
        f'bbox_head.conv_cls.weight, bbox_head.conv_cls.bias'
    )
    assert 'other classes' in remedy and found(done, 'error').keys() == {'Classes'}
    assert done.report['figures']['seconds']['plain'] > 0


def test_load_from__of_another_model(preflight, tmp_path):
    torch.save(dict(state_dict={'conv.weight': torch.zeros(3)}), tmp_path / 'other.pth')
    done = preflight('--samples', 0, change=start_from(tmp_path / 'other.pth'))
    text, _ = found(done, 'error')['load_from']
    assert text.startswith('other.pth: 0 of ') and text.endswith('it is of another model')


def test_prepare__takes_what_fits(trained, config):
    """Like the Runner, it skips weights of another shape."""
    cfg = Config.fromfile(config(start_from(trained.checkpoint, num_classes=7)))
    model = distilled_student(MODELS.build(cfg.model))
    prepare(cfg, model, load_samples(cfg, 4)[1])
    weights, own = load(trained.checkpoint)['state_dict'], model.state_dict()
    fitting = {key: own[key] for key in weights if not key.startswith('bbox_head.conv_cls')}
    torch.testing.assert_close(fitting, {key: weights[key] for key in fitting}, rtol=0, atol=0)


def test_prepare__inherits_as_the_training_will(trained, config):
    cfg = Config.fromfile(config(lambda cfg: cfg.model.update(inherit=['bbox_head.conv_cls'])))
    model = distilled_student(MODELS.build(cfg.model))
    weights = load(cfg.model.teacher.checkpoint)['state_dict']
    prepare(cfg, model, load_samples(cfg, 4)[1])
    key = 'bbox_head.conv_cls.weight'
    assert torch.equal(model.state_dict()[key], weights[key])


# Classes


def test_preflight__classes_in_another_order(preflight, trained, tmp_path):
    """Predictions are matched by class name, so the order does not change the AP."""
    checkpoint = load(trained.checkpoint)
    order = [2, 0, 1]
    weights = checkpoint['state_dict']
    for key in ('bbox_head.conv_cls.weight', 'bbox_head.conv_cls.bias'):
        weights[key] = weights[key][order]
    checkpoint['meta']['dataset_meta'] = dict(classes=[CLASSES[label] for label in order])
    torch.save(checkpoint, tmp_path / 'reordered.pth')
    same = preflight('--samples', 0, '--eval-teacher')
    other = preflight('--samples', 0, '--eval-teacher', checkpoint=tmp_path / 'reordered.pth')
    assert other.status == 0
    assert '3, the 3 of the data set among them' in found(other, 'ok')['Teacher classes'][0]
    assert other.report['figures']['teacher_ap'] == same.report['figures']['teacher_ap']


def test_preflight__num_classes(preflight):
    def change(cfg):
        cfg.model.student.bbox_head.num_classes = 80

    done = preflight('--samples', 0, change=change)
    assert done.status == 1
    text, remedy = found(done, 'error')['Classes']
    assert text == (
        "the student's bbox_head has num_classes=80, the data set has 3 (red, green, blue)"
    )
    assert remedy.startswith('set model.student.bbox_head.num_classes=3')
    assert done.out.splitlines()[-1] == '1 error: see the lines marked ->.'


def test_data_classes__wrapped_inherited_and_unnamed():
    def of(dataset):
        return data_classes(Config(dict(train_dataloader=dict(dataset=dataset))))

    pets = dict(type='CocoDataset', metainfo=dict(classes=('cat', 'dog')))
    assert of(pets) == ('cat', 'dog')
    assert of(dict(type='RepeatDataset', times=2, dataset=pets)) == ('cat', 'dog')
    assert of(dict(type='ConcatDataset', datasets=[pets, pets])) == ('cat', 'dog')
    assert of(dict(type='CocoDataset'))[:2] == ('person', 'bicycle')
    assert of(dict(type='NobodyKnows')) is None
    assert data_classes(Config(dict())) is None


def test_label_map():
    assert label_map(('dog', 'cow', 'cat'), ('cat', 'dog')) == {0: 1, 2: 0}


def test_num_classes__two_stages(small_config):
    model = MODELS.build(small_config('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model)
    assert num_classes(model) == {'roi_head.bbox_head': 80}


# Measurements


def test_preflight__figures(preflight):
    """Checks the number of iterations, the levels, and the gradients and weights in the report."""
    done = preflight('--samples', 4, change=lambda cfg: cfg.train_cfg.update(max_epochs=7))
    figures, tables = done.report['figures'], done.report['tables']
    assert figures['iterations'] == 7 * 6  # 24 images in batches of 4
    assert 0 < figures['seconds']['plain'] < 10 and 0 < figures['seconds']['distilled'] < 10
    levels, gradients, times = tables
    assert [row[:5] for row in levels['rows']] == [
        ['neck_s8', '8', '16x32x32', '24x32x32', '1x1 conv'],
        ['neck_s16', '16', '16x16x16', '24x16x16', '1x1 conv'],
        ['neck_s32', '32', '16x8x8', '24x8x8', '1x1 conv'],
    ]
    assert [row[0] for row in gradients['rows']] == ['neck_s8', 'neck_s16', 'neck_s32']
    assert [row[0] for row in times['rows']] == ['plain', 'distilled']
    loss, own, of_task, weight, share = map(float, gradients['rows'][0][1:])
    assert 0.5 < loss < 4 and weight == 1  # 2 where nothing is known yet
    assert share == pytest.approx(own / of_task, rel=0.1)
    assert 0 < figures['recommended_loss_weight']['neck'] < 1


def test_preflight__memory(preflight):
    rows = preflight('--samples', 4).report['tables'][2]['rows']
    plain, distilled = (float(row[2].removesuffix(' MiB')) for row in rows)
    assert 0 < plain <= distilled


def test_preflight__recommends_what_auto_sets(preflight, config):
    """The recommended weight is the one that training with 'auto' starts with."""

    def change(cfg):
        cfg.model.losses.neck.loss_weight = 'auto'

    auto = preflight('--samples', 4, change=change)
    cfg = Config.fromfile(config(change))
    model = distilled_student(MODELS.build(cfg.model))
    set_random_seed(0)
    batches = load_samples(cfg, 4)[1]
    prepare(cfg, model, batches)
    data = model.data_preprocessor(batches[0], True)
    model.loss(data['inputs'], data['data_samples'])
    expected = float(model.distill.losses['neck'].auto_weight)
    recommended = auto.report['figures']['recommended_loss_weight']['neck']
    assert recommended == pytest.approx(expected, rel=1e-4)
    assert "'auto' would be" in found(auto, 'ok')["Weight at 'neck'"][0]
    assert auto.report['tables'][0]['rows'][0][-1] == 'auto'


def test_preflight__weight_that_drowns_the_task(preflight):
    done = preflight(change=lambda cfg: cfg.model.losses.neck.update(loss_weight=1e4))
    text, remedy = found(done, 'warning')["Weight at 'neck'"]
    assert 'it drowns the task' in text and remedy == 'set loss_weight nearer to 1'
    recommended = done.report['figures']['recommended_loss_weight']['neck']
    times = f'{1e4 / recommended:,.0f}'
    assert f"gradient is {times} times the task's, {recommended:.3g} would make them equal" in text


def test_preflight__weight_zero(preflight):
    """Plain training is measured, and the teacher's file may be missing."""
    done = preflight(
        checkpoint='nowhere.pth', change=lambda cfg: cfg.model.losses.neck.update(loss_weight=0)
    )
    assert done.status == 0
    assert done.report['figures']['seconds']['plain'] > 0
    assert done.report['tables'][1]['rows'] == []


def test_preflight__frozen_stage(preflight):
    """Stage 1 of MMDetection's backbones is frozen by default; training works nevertheless.

    So it does with activation checkpoints, which refuse `torch.autograd.grad`.
    """

    def tap_backbone(cfg):
        cfg.model.losses = dict(backbone=dict(cfg.model.losses.neck, loss_weight='auto'))
        cfg.model.student.backbone.update(frozen_stages=1, with_cp=True)

    done = preflight(change=tap_backbone)
    assert done.status == 0
    text, remedy = found(done, 'warning')["Levels of 'backbone'"]
    assert 'all layers before backbone_s4 are frozen' in text and 'weight 0' in remedy
    shares = {row[0]: row[-1] for row in done.report['tables'][1]['rows']}
    assert shares.pop('backbone_s4') == '-' and all(float(share) > 0 for share in shares.values())


@pytest.mark.parametrize('side', ['teacher', 'student'])
def test_preflight__not_finite(preflight, trained, tmp_path, side):
    checkpoint = load(trained.checkpoint)
    checkpoint['state_dict']['neck.fpn_convs.1.conv.bias'][0] = float('nan')
    path = tmp_path / 'nan.pth'

    def start_from_nan(cfg):
        cfg.model.student = fcos(**TEACHER)
        cfg.load_from = str(path)

    torch.save(checkpoint, path)
    options = dict(checkpoint=path) if side == 'teacher' else dict(change=start_from_nan)
    done = preflight(**options)
    assert done.status == 1
    expected = {
        'teacher': "the teacher's feature maps of the calibration images hold NaN",
        'student': "the student's own loss, loss_cls, loss_bbox, loss_centerness is not finite",
    }
    assert expected[side] in found(done, 'error')['Not finite'][0]


def test_preflight__no_object_of_its_classes(preflight, trained, tmp_path):
    annotations = json.loads((trained.data / 'annotations.json').read_text())
    empty = tmp_path / 'empty.json'
    empty.write_text(json.dumps({**annotations, 'annotations': []}))
    done = preflight('--cfg-options', f'train_dataloader.dataset.ann_file={empty}')
    text, remedy = found(done, 'error')['Training data']
    assert text == 'no object in 8 of 24 images' and 'metainfo.classes' in remedy


def test_preflight__a_class_in_another_spelling(preflight):
    def change(cfg):
        cfg.train_dataloader.dataset.metainfo = dict(classes=('red', 'green', 'Blue'))

    done = preflight('--samples', 0, change=change)
    assert done.status == 0
    text, remedy = found(done, 'warning')['Classes']
    assert text.startswith('Blue: not among the categories of ')
    assert text.endswith("annotations.json (red, green, blue); did you mean 'blue'?")
    assert remedy.startswith('write metainfo.classes as in the file')


def test_preflight__teacher_that_takes_not_every_size(preflight, small_config, tmp_path):
    """RTMDet asks for no divisor, but its neck takes multiples of 32 only: the bridge pads."""
    teacher = small_config('rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
    (tmp_path / 'rtmdet').mkdir()
    path, checkpoint = teacher_files(tmp_path / 'rtmdet', teacher)

    def change(cfg):
        cfg.model.teacher.update(config=path, checkpoint=checkpoint)
        cfg.model.student.data_preprocessor.pad_size_divisor = 1

    done = preflight(change=change)
    assert 'Training step' not in found(done, 'error')
    assert 'to multiples of 32' in found(done, 'ok')['Input'][0]


def test_preflight__student_that_takes_not_every_size(preflight, small_config):
    student = small_config('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', bbox_head=dict(num_classes=3))

    def change(cfg):
        cfg.model.student = student.model

    done = preflight(change=change)
    assert done.status == 1
    text, remedy = found(done, 'error')['Training step']
    assert text.startswith('fails: RuntimeError: Sizes of tensors')
    assert 'pad_size_divisor=32' in remedy


def test_preflight__two_teachers(preflight):
    def change(cfg):
        one = cfg.model.teacher
        cfg.model.teacher = [dict(one, name='big'), dict(one, name='small')]

    done = preflight('--samples', 4, '--eval-teacher', change=change)
    assert done.status == 0, done.out
    fine = found(done, 'ok')
    assert {'Teacher AP (big)', 'Teacher AP (small)', "Teacher's input (small)"} <= fine.keys()


# The command line


def test_preflight__other_images_sizes_of_the_teacher(preflight, tmp_path):
    """The report names the student's smaller images as the reason."""

    def change(cfg):
        cfg.val_dataloader.dataset.pipeline[1].scale = (40, 32)

    done = preflight('--samples', 0, '--eval-teacher', change=change)
    severity = 'error' if done.status else 'warning'
    text, _ = found(done, severity)['Teacher AP']
    assert "the student's images are resized to (40, 32), the teacher's to (80, 64)" in text


def test_preflight__validation_data_in_a_wrapper(preflight):
    def change(cfg):
        wrapped = dict(type='ConcatDataset', datasets=[cfg.val_dataloader.dataset])
        cfg.val_dataloader.dataset = wrapped

    plain = preflight('--samples', 0, '--eval-teacher')
    wrapped = preflight('--samples', 0, '--eval-teacher', change=change)
    assert wrapped.status == 0, wrapped.out
    assert wrapped.report['figures']['teacher_ap'] == plain.report['figures']['teacher_ap']


@pytest.mark.smoke
@pytest.mark.parametrize(
    'args, expected',
    [
        (['--samples', '-1'], '--samples must be 0 or more, got -1.'),
        (
            ['--json', 'no/such/report.json'],
            '--json no/such/report.json cannot be written: No such file or directory; give a file '
            'in an existing directory that you may write to.',
        ),
    ],
)
def test_mistake__arguments(config, capsys, args, expected):
    with pytest.raises(SystemExit) as stopped:
        call_tool('preflight.py', config(), *args)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f'preflight.py: {expected}\n'


class Payload:
    """Makes a file when it is unpickled unsafely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.smoke
def test_mistake__malicious_checkpoint(preflight, trained, tmp_path):
    proof, path = tmp_path / 'payload_ran', tmp_path / 'malicious.pth'
    weights = load(trained.checkpoint)['state_dict']
    torch.save(dict(state_dict=weights, meta=dict(), payload=Payload(proof)), path)
    for args in ([], ['--eval-teacher'], ['--samples', 0]):
        done = preflight(*args, checkpoint=path)
        assert done.status == 2 and done.report is None
        assert len(done.err.splitlines()) == 1
        assert 'malicious.pth holds more than plain data' in done.err
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # it would have


IN_PIPELINE = 'train_dataloader.dataset.pipeline.1'


@pytest.mark.parametrize(
    'option, expected',
    [
        ('optim_wrapper.clip_gradd.max_norm=1', "unexpected keyword argument 'clip_gradd'"),
        ('optim_wrapper.optimizer.lrr=1', "unexpected keyword argument 'lrr'"),
        ('param_scheduler.type=LinearLr', "did you mean 'LinearLR'?"),
        ('train_dataloader.batch_sizes=1', "unexpected keyword argument 'batch_sizes'"),
        ('train_dataloader.num_workers=-1', 'num_workers option should be non-negative'),
        (f'{IN_PIPELINE}.type=Resizee', "did you mean 'Resize'?"),
        (f'{IN_PIPELINE}.scale=abc', 'Scale must be a number or tuple of int'),
        ('train_dataloader.dataset.ann_file=broken.json', 'broken.json are cut off or damaged: '),
    ],
)
def test_mistake__one_line_as_of_training(preflight, trained, option, expected):
    (trained.data / 'broken.json').write_text('{"images": [')
    done = preflight('--cfg-options', option)
    assert done.status == 2 and done.report is None
    assert len(done.err.splitlines()) == 1 and expected in done.err


@pytest.mark.parametrize(
    'option, expected',
    [
        ('val_evaluator.type=CocoMetrik', "did you mean 'CocoMetric'?"),
        ('val_evaluator.metric=bboxx', 'bboxx'),
        ('val_evaluator.ann_file=/nope.json', '/nope.json'),
        ('val_dataloader.batch_sizes=1', "'batch_sizes'"),
    ],
)
def test_mistake__of_validation_is_a_finding(preflight, option, expected):
    done = preflight('--samples', 0, '--eval-teacher', '--cfg-options', option)
    text, _ = found(done, 'error')['Teacher AP']
    assert text.startswith('cannot be measured: ') and expected in text


def test_mistake__broken_image(preflight, trained):
    """It stops preflight as it would stop a training; it is not reported as a config mistake."""
    image = trained.data / 'images/0.png'
    whole = image.read_bytes()
    image.write_bytes(b'no image')
    done = preflight('--samples', 24)
    image.write_bytes(whole)
    assert done.status == 1 and done.report is None
    assert str(image) in done.err and len(done.err.splitlines()) == 1


def test_mistake__plain_config(trained, tmp_path, capsys):
    run_config(trained.data, tmp_path, fcos()).dump(tmp_path / 'plain.py')
    with pytest.raises(SystemExit) as stopped:
        call_tool('preflight.py', tmp_path / 'plain.py')
    assert stopped.value.code == 2
    assert 'the model is a plain FCOS' in capsys.readouterr().err


# At every training start


def test_train__logs_the_static_report(config, tmp_path, capsys):
    def change(cfg):
        cfg.log_level = 'INFO'
        cfg.train_cfg.max_epochs = 1
        cfg.model.student.bbox_head.num_classes = 4

    call_tool('train.py', config(change=change))
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert log.count('RdimKD preflight of') == 1
    report = log[log.index('RdimKD preflight of') :]
    assert '-> set model.student.bbox_head.num_classes=3' in report
    assert (tmp_path / 'work/epoch_1.pth').exists()  # it is told, not forbidden


def test_static_report__leaves_random_state(config):
    cfg = Config.fromfile(config())
    model = launch.check_before_run(cfg, training=True)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    assert static_report(cfg, model).passed
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert before == after
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)


def test_static_report__teacher_that_will_not_run(config):
    """Without a loss weight, the teacher is neither loaded nor judged."""

    def without_weight(cfg):
        cfg.model.losses.neck.loss_weight = 0

    cfg = Config.fromfile(config(without_weight, checkpoint='nowhere.pth'))
    report = static_report(cfg, launch.check_before_run(cfg, training=True))
    assert [finding.text for finding in report.findings if 'Teacher' in finding.topic] == [
        'not loaded: no loss has a weight'
    ]


def test_preflight__cached_teacher(tmp_path, capsys, monkeypatch):
    """With maps from a cache, everything but the teacher is judged."""
    monkeypatch.setenv('COLUMNS', '400')
    make_cache(cached_run(write_files(tmp_path)))
    with pytest.raises(SystemExit) as stopped:
        call_tool('preflight.py', tmp_path / 'run.py', '--samples', 4, '--eval-teacher')
    output = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f'not loaded: its maps come from cache {tmp_path}' in output
    assert 'neck_s16' in output and 'an iteration' in output


def test_static_report__log_level(config, caplog):
    cfg = Config.fromfile(
        config(change=lambda cfg: cfg.model.student.bbox_head.update(num_classes=4))
    )
    report = static_report(cfg, launch.check_before_run(cfg, training=True))
    logger = logging.getLogger('test_static_report')
    with caplog.at_level(logging.INFO):
        report.log(logger)
        report.findings.clear()
        report.log(logger)
    assert [record.levelname for record in caplog.records] == ['WARNING', 'INFO']


# Parts


def test_input_format():
    preprocessor = MODELS.build(fcos().data_preprocessor)
    assert InputFormat.of(preprocessor) == IMAGENET
    assert InputFormat.of(IMAGENET.build(like=preprocessor)) == IMAGENET
    assert IMAGENET.swapped().as_config() == (
        'mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=False'
    )


def test_candidates__each_format_once():
    formats = candidates(WELL_KNOWN['from 0 to 255, BGR'])
    assert next(iter(formats)) == 'as configured'
    assert len(set(formats.values())) == len(formats) == len(WELL_KNOWN)
    assert formats['as configured, channels swapped'] == WELL_KNOWN['from 0 to 255, RGB']


def test_divergence__literal():
    """Literal: (v + d^2) / s and (s + d^2) / v, halved, minus 1; the floor is negligible."""
    norm = nn.BatchNorm2d(2, eps=0.0).double()
    norm.running_mean[:], norm.running_var[:] = torch.tensor([0.0, 1.0]), torch.tensor([1e6, 1e6])
    same = (norm.running_mean.clone(), norm.running_var.clone())
    assert divergence([(norm, same)]) == 0
    # 1e6 and 1e3 of floor against 2e6 and the floor; shifted by 1000 in the second channel.
    moved = (torch.tensor([0.0, 1001.0]).double(), torch.tensor([2e6, 1e6]).double())
    s, v = 1.001e6, 2.001e6
    first = np.log1p((v / s + s / v) / 2 - 1)
    second = np.log1p((s + 1e6) / s - 1)
    assert divergence([(norm, moved)]) == pytest.approx((first + second) / 2, rel=1e-6)
    # The second layer weighs half of the first.
    assert divergence([(norm, same), (norm, moved)]) == pytest.approx(
        (first + second) / 2 / 3, rel=1e-6
    )
    assert divergence([]) is None


def test_batch_norms__only_those_with_statistics():
    network = nn.Module()
    network.backbone = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.GroupNorm(1, 3))
    network.backbone[1].running_mean += 1
    assert batch_norms(network) == [network.backbone[1]]


@pytest.mark.parametrize(
    'configured, other, better',
    [
        ((0.02, 1.0), (0.1, 1.0), False),
        ((0.5, 1.0), (0.1, 1.0), True),
        ((0.02, 1.0), (0.02, 0.8), True),
        ((0.02, 1.0), (0.02, 0.95), False),
        ((0.02, 1.0), (5.0, 0.5), False),  # statistics come first
        ((None, 1.0), (None, 0.8), True),
        ((0.5, None), (0.1, None), True),
        ((None, None), (None, None), False),
    ],
)
def test_better_input(configured, other, better):
    scores = [
        InputScore('as configured', IMAGENET, *configured),
        InputScore('other', IMAGENET.swapped(), *other),
    ]
    assert better_input(scores) is (scores[1] if better else None)


@pytest.mark.parametrize(
    'aps, severity, expected',
    [
        (TeacherAPs(0.39, 0.4), 'ok', '0.390 through the bridge, 0.400 through its own pipeline'),
        (TeacherAPs(0.37, 0.4), 'warning', '; the sizes are the same, so it is what the bridge'),
        (TeacherAPs(0.2, 0.4), 'error', '; the sizes are the same, so it is what the bridge'),
        (TeacherAPs(0.001, 0.009), 'error', ': its checkpoint is not trained'),
        (TeacherAPs(0.39, 0.4, 0.5), 'error', ', 0.500 with the input that fits it better'),
        (TeacherAPs(0.39, 0.4, 0.3), 'ok', ', 0.300 with the input that fits it better'),
    ],
)
def test_judge_aps(aps, severity, expected):
    pipeline = [dict(type='Resize', scale=(96, 64))]
    cfg = Config(dict(val_dataloader=dict(dataset=dict(pipeline=pipeline))))
    part = SimpleNamespace(bridge='nothing to do', teacher=SimpleNamespace(config='teacher.py'))
    report = Report('')
    judge_aps(aps, cfg, part, pipeline, IMAGENET, report, 'Teacher AP')
    (finding,) = report.findings
    assert finding.severity == severity and expected in finding.text
    figures = {'bridge': aps.bridge, 'own': aps.own}
    figures |= {} if aps.corrected is None else {'corrected': aps.corrected}
    assert report.figures == {'teacher_ap': {'Teacher AP': figures}}


def test_report__a_long_path_is_printed_whole():
    path = f'/data/{"x" * 80}/epoch_12.pth'
    report = Report('')
    report.error('Teacher weights', f'{path} looks untrained', 'give another')
    console = Console(file=io.StringIO(), width=80)
    report.print(console)
    assert path in re.sub(r'\s+', '', console.file.getvalue())


# The whole teacher


def test_build_detector__sync_batch_norm_becomes_plain(tmp_path):
    model = fcos()
    model.backbone.norm_cfg = dict(type='SyncBN', requires_grad=True)
    teacher = Teacher(*teacher_files(tmp_path, Config(dict(model=model))), taps=['neck'])
    detector = build_detector(SimpleNamespace(teacher=teacher), 'cpu')
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in detector.modules())
    assert not detector.training and not any(p.requires_grad for p in detector.parameters())
    assert teacher.model.backbone.norm_cfg.type == 'SyncBN'  # the config is left alone
