"""Misspelled names in exceptions of the host: one line suggests what was probably meant."""

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import Registry
from mmengine.runner import Runner
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from rdimkd_det import ConfigError, DistillHook
from rdimkd_det.options import check_type, explain, type_name

HEAD = dict(type='FCOSHead', num_classes=3, in_channels=4)
WEIGHTS = [torch.nn.Parameter(torch.zeros(1))]


def explained(call) -> str:
    with pytest.raises(Exception) as raised:
        call()
    return explain(raised.value)


@pytest.mark.parametrize(
    'call, meant',
    [
        (lambda: DataLoader([1], batch_sizes=2), 'batch_size'),
        (lambda: SGD(WEIGHTS, lrr=1), 'lr'),
        (lambda: torch.nn.utils.clip_grad_norm_(WEIGHTS, max_norms=3), 'max_norm'),
        (lambda: Runner.save_checkpoint(None, filenam='a'), 'filename'),
        (lambda: MODELS.build(dict(type='ResNet', depht=18)), 'depth'),
        # Handed on by FCOSHead: an option of the base that refuses it, and one of its own.
        (lambda: MODELS.build(dict(HEAD, stacked_conv=1)), 'stacked_convs'),
        (lambda: MODELS.build(dict(HEAD, norm_on_bbx=True)), 'norm_on_bbox'),
    ],
)
def test_explain__unexpected_option(call, meant):
    line = explained(call)
    assert 'unexpected keyword argument' in line and line.endswith(f"; did you mean '{meant}'?")


def test_explain__exception_raised_anew():
    """mmengine's Runner re-raises a hook's exception; the explanation is in the first traceback."""

    def call():
        try:
            SGD(WEIGHTS, lrr=1)
        except TypeError as error:
            raise TypeError(f'{error} in hook') from None

    assert explained(call).endswith("'lrr' in hook; did you mean 'lr'?")


def test_explain__nothing_near():
    line = explained(lambda: SGD(WEIGHTS, zebra=1))
    assert line.endswith("unexpected keyword argument 'zebra'")


def test_explain__whole_config_is_cut():
    line = explain(ValueError(f'cfg should not be {dict(a=["b"] * 1000)}'))
    assert line.startswith("ValueError: cfg should not be {'a': ['b', ")
    assert len(line) <= 400 and line.endswith(' ...')


def test_explain__file():
    line = explained(Path('/no/such/file.json').read_text)
    assert line == "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file.json'"


@pytest.mark.parametrize(
    'entry, name',
    [
        ({'type': 'DistillHook'}, 'DistillHook'),
        ({'type': 'mmdet.DistillHook'}, 'DistillHook'),
        ({'type': 'rdimkd_det.DistillHook'}, 'DistillHook'),
        ({'type': 'rdimkd_det.hooks.DistillHook'}, 'DistillHook'),
        ({'type': DistillHook}, 'DistillHook'),
        ({'type': 'DistillHook', '_scope_': 'mmdet'}, 'DistillHook'),
        ({'type': 'theirs.DistillHook'}, 'theirs.DistillHook'),
        ({'type': 'DistillHook', '_scope_': 'theirs'}, 'theirs.DistillHook'),
        ({}, 'None'),
    ],
)
def test_type_name__however_it_is_written(entry, name):
    assert type_name(entry) == name


def test_check_type__suggests_a_users_own():
    @MODELS.register_module(force=True)
    class WindowedDistance(nn.Module):
        pass

    own = Registry('model', parent=MODELS.root, scope='somebody')

    @own.register_module()
    class PyramidOfMine(nn.Module):
        pass

    try:
        for name, meant in (
            ('WindowdDistance', 'WindowedDistance'),
            ('PyramidOfMin', 'PyramidOfMine'),
            ('RdimKDLos', 'RdimKDLoss'),
        ):
            with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
                check_type(dict(type=name), 'model.losses.neck', MODELS, ['RdimKDLoss'])
    finally:
        MODELS.module_dict.pop('WindowedDistance')
        MODELS.root.children.pop('somebody')
