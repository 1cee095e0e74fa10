"""Losses, gradients, weights, time and memory, as measured."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from detectors import teacher_files
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import set_random_seed
from preflights import TEACHER, found
from runs import fcos, load

from rdimkd_det.distiller import distilled_student
from rdimkd_det.preflight.measurements import _judge_weight, load_samples, prepare
from rdimkd_det.preflight.report import Report


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
    text = f"'auto' is about {recommended:.3g}: distillation's gradient is 10 times the task's"
    assert found(auto, 'ok')["Weight at 'neck'"][0] == text
    assert auto.report['tables'][0]['rows'][0][-1] == 'auto'


@pytest.mark.parametrize('balance, severity', [(1e3, 'ok'), (1e11, 'warning'), (1e-5, 'warning')])
def test_judge_weight__auto_as_in_training(balance, severity):
    report, loss = Report(''), SimpleNamespace(auto=True, auto_share=10)
    _judge_weight('neck', loss, 1, balance, report)
    [finding] = report.findings
    assert finding.severity == severity and f"'auto' is about {10 * balance:.3g}" in finding.text


def test_preflight__weight_that_drowns_the_task(preflight):
    done = preflight(change=lambda cfg: cfg.model.losses.neck.update(loss_weight=1e4))
    text, remedy = found(done, 'warning')["Weight at 'neck'"]
    recommended = done.report['figures']['recommended_loss_weight']['neck']
    times = f'{1e4 / recommended * 10:,.0f}'
    assert text == f"10000: distillation's gradient is {times} times the task's; it drowns the task"
    assert remedy == f"set loss_weight='auto', which would be {recommended:.3g}"


def test_preflight__weight_that_does_little(preflight):
    done = preflight(change=lambda cfg: cfg.model.losses.neck.update(loss_weight=1e-6))
    text, remedy = found(done, 'warning')["Weight at 'neck'"]
    assert text.endswith('it does little') and remedy.startswith("set loss_weight='auto'")


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
