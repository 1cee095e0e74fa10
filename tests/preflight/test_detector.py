"""The whole teacher."""

from types import SimpleNamespace

from detectors import teacher_files
from mmengine.config import Config
from runs import fcos
from torch import nn

from rdimkd_det.preflight.whole_teacher import build_detector
from rdimkd_det.teacher import DetectorSource, Teacher


def test_build_detector__sync_batch_norm_becomes_plain(tmp_path):
    model = fcos()
    model.backbone.norm_cfg = dict(type='SyncBN', requires_grad=True)
    teacher = Teacher(
        DetectorSource(*teacher_files(tmp_path, Config(dict(model=model)))), taps=['neck']
    )
    detector = build_detector(SimpleNamespace(teacher=teacher), 'cpu')
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in detector.modules())
    assert not detector.training and not any(p.requires_grad for p in detector.parameters())
    assert teacher.source.model.backbone.norm_cfg.type == 'SyncBN'  # the config is left alone
