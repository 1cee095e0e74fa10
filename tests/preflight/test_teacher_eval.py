"""The teacher's AP on the student's validation data."""

from types import SimpleNamespace

import pytest
from mmengine.config import Config
from preflights import found

from rdimkd_det.preflight.input_formats import IMAGENET
from rdimkd_det.preflight.report import Report
from rdimkd_det.preflight.teacher_eval import TeacherAPs, judge_aps


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
        cfg.val_evaluator = dict(
            type='MultiDatasetsEvaluator', metrics=[cfg.val_evaluator], dataset_prefixes=['one']
        )

    plain = preflight('--samples', 0, '--eval-teacher')
    wrapped = preflight('--samples', 0, '--eval-teacher', change=change)
    assert wrapped.status == 0, wrapped.out
    assert wrapped.report['figures']['teacher_ap'] == plain.report['figures']['teacher_ap']


@pytest.mark.parametrize(
    'option, expected',
    [
        ('val_evaluator.type=CocoMetrik', "did you mean 'CocoMetric'?"),
        ('val_evaluator.metric=bboxx', 'bboxx'),
        ('val_evaluator.ann_file=/nope.json', '/nope.json'),
    ],
)
def test_mistake__of_validation_is_a_finding(preflight, option, expected):
    done = preflight('--samples', 0, '--eval-teacher', '--cfg-options', option)
    text, _ = found(done, 'error')['Teacher AP']
    assert text.startswith('cannot be measured: ') and expected in text


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
    source = SimpleNamespace(name='teacher.py')
    part = SimpleNamespace(teacher=SimpleNamespace(bridge='nothing to do', source=source))
    report = Report('')
    judge_aps(aps, cfg, part, pipeline, IMAGENET, report, 'Teacher AP')
    (finding,) = report.findings
    assert finding.severity == severity and expected in finding.text
    figures = {'bridge': aps.bridge, 'own': aps.own}
    figures |= {} if aps.corrected is None else {'corrected': aps.corrected}
    assert report.figures == {'teacher_ap': {'Teacher AP': figures}}
