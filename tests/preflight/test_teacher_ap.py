"""`DistillHook(eval_teacher=True)`: the teacher's AP in a run's log, once."""

import logging

import pytest
import torch
from mmengine.config import Config
from runs import load, train

from rdimkd_det.files.atomic import read_json
from rdimkd_det.files.scalars import read_history
from rdimkd_det.preflight import teacher_ap


def evaluating(cfg):
    cfg.custom_hooks[0].eval_teacher = True
    cfg.train_cfg.val_interval = 1


@pytest.mark.slow
def test_eval_teacher__is_preflights_figure_and_measured_once(
    config, preflight, tmp_path, monkeypatch
):
    figures = preflight('--samples', 0, '--eval-teacher').report['figures']['teacher_ap']
    cfg = Config.fromfile(config(evaluating))
    train(cfg)
    work_dir = tmp_path / 'work'
    history = read_history(work_dir)
    assert history.teacher_ap > 0.05
    assert history.teacher_ap == pytest.approx(figures['Teacher AP']['bridge'], abs=1e-3)
    assert list(history.teacher_aps) == ['teacher_ap'] and sorted(history.val) == [1, 2]

    weights = load(work_dir / 'epoch_2.pth')['state_dict']
    bridged_ap = teacher_ap.bridged_ap
    monkeypatch.setattr(teacher_ap, 'bridged_ap', None)  # not measured again ...
    train(Config.fromfile(config(evaluating)))
    assert read_history(work_dir).teacher_ap == history.teacher_ap
    monkeypatch.setattr(teacher_ap, 'bridged_ap', lambda *_: 0.25)

    def change(cfg):
        evaluating(cfg)
        cfg.val_dataloader.dataset.pipeline[1].scale = (40, 32)

    train(Config.fromfile(config(change)))  # ... except on other data
    assert read_json(work_dir / teacher_ap.FILE)['teacher_ap']['ap'] == 0.25
    monkeypatch.setattr(teacher_ap, 'bridged_ap', bridged_ap)

    train(Config.fromfile(config()))  # without the option: the training is the same, bit for bit
    for name, tensor in load(work_dir / 'epoch_2.pth')['state_dict'].items():
        assert torch.equal(tensor, weights[name])


@pytest.mark.slow
def test_eval_teacher__without_common_classes_is_a_warning(config, tmp_path, caplog):
    def change(cfg):
        evaluating(cfg)
        cfg.train_dataloader.dataset.metainfo = dict(classes=('a', 'b', 'c'))

    cfg = Config.fromfile(config(change))
    cfg.train_cfg.max_epochs = 1
    with caplog.at_level(logging.WARNING):
        train(cfg)
    assert read_history(tmp_path / 'work').teacher_ap is None
    assert not (tmp_path / 'work' / teacher_ap.FILE).exists()
