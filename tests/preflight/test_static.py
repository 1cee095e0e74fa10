"""The report at every training start."""

import logging
import random

import numpy as np
import pytest
import torch
from cached_runs import cached_run, make_cache, write_files
from mmengine.config import Config
from runs import call_tool

from rdimkd_det.commands import launch
from rdimkd_det.preflight import static_report


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
    model, _ = launch.check_before_run(cfg, training=True)
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
    report = static_report(cfg, *launch.check_before_run(cfg, training=True))
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
    assert f'teacher.pth, its maps from cache {tmp_path}' in output
    assert 'neck_s16' in output and 'an iteration' in output


def test_static_report__log_level(config, caplog):
    cfg = Config.fromfile(
        config(change=lambda cfg: cfg.model.student.bbox_head.update(num_classes=4))
    )
    report = static_report(cfg, *launch.check_before_run(cfg, training=True))
    logger = logging.getLogger('test_static_report')
    with caplog.at_level(logging.INFO):
        report.log(logger)
        report.findings.clear()
        report.log(logger)
    assert [record.levelname for record in caplog.records] == ['WARNING', 'INFO']
