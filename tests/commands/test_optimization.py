"""Checks of a config's optimizers and schedulers before anything is built."""

import pytest
from detectors import CONFIGS
from mmengine.config import Config
from mmengine.optim import ConstantLR

from rdimkd_det import ConfigError
from rdimkd_det.commands.optimization import check_schedulers

LINEAR = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10)


@pytest.mark.parametrize(
    'entry, message',
    [
        ([LINEAR, dict(LINEAR, start_faktor=1)], r'\[1\] \(LinearLR\).*did you mean .start_factor'),
        (dict(type='CosineAnnealingLR', t_max=3), r'param_scheduler \(Cosine.*did you mean .T_max'),
        ([dict(type='MultiStepLr')], r"\[0\]: unknown type 'MultiStepLr'; did you mean 'MultiS"),
        (dict(generator=[LINEAR], critic=dict(LINEAR, ends=1)), r'param_scheduler\.critic .*ends'),
        ([3], r'\[0\] must be a dict with a type'),
        ([dict(type=ConstantLR, factors=1)], r'did you mean .factor'),
    ],
)
def test_scheduler__mistake(entry, message):
    with pytest.raises(ConfigError, match=message):
        check_schedulers(Config(dict(param_scheduler=entry)))


@pytest.mark.parametrize('entry', [None, [], LINEAR, dict(generator=[LINEAR], critic=LINEAR)])
def test_scheduler__passes(entry):
    check_schedulers(Config(dict(param_scheduler=entry)))


def test_schedulers_of_all_configs__pass():
    """Covers mmdet's config files that can be read without a download."""
    checked = 0
    for file in sorted(CONFIGS.glob('_base_/schedules/*.py')):
        check_schedulers(Config.fromfile(file))
        checked += 1
    for name in ('rtmdet/rtmdet_s_8xb32-300e_coco.py', 'yolox/yolox_s_8xb8-300e_coco.py'):
        check_schedulers(Config.fromfile(CONFIGS / name))
    assert checked >= 3
