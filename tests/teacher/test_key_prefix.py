"""A checkpoint whose keys have a common prefix that the module's lack, or vice versa."""

import pytest
import torch
from torch import nn

from rdimkd_det import ConfigError
from rdimkd_det.teacher import ModuleSource

INPUT = dict(mean=[0, 0, 0], std=[1, 1, 1])


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4))


def load(tmp_path, module, weights):
    torch.save(weights, tmp_path / 'w.pth')
    source = ModuleSource(module, str(tmp_path / 'w.pth'), **INPUT)
    return source.load(source.read_weights(False), ())


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.student.'])
def test_prefix__of_the_checkpoint(tmp_path, prefix):
    trained = network()
    weights = {prefix + key: value for key, value in trained.state_dict().items()}
    found = load(tmp_path, network(), {**weights, 'head.weight': torch.zeros(3)})
    assert all(map(torch.equal, found.state_dict().values(), trained.state_dict().values()))


def test_prefix__of_the_module(tmp_path):
    trained = network()
    module = nn.ModuleDict({'model': nn.ModuleDict({'trunk': network()})})
    found = load(tmp_path, module, trained.state_dict())
    assert torch.equal(found['model']['trunk'][0].weight, trained[0].weight)


def test_prefix__twice_is_ambiguous(tmp_path):
    weights = {
        f'{prefix}.{key}': value
        for prefix in ('student', 'teacher')
        for key, value in network().state_dict().items()
    }
    with pytest.raises(ConfigError, match=r"2 times, below 'student\.' and 'teacher\.'; save"):
        load(tmp_path, network(), weights)


def test_prefix__nothing_fits(tmp_path):
    weights = {f'a.{key}': value for key, value in network().state_dict().items()}
    del weights['a.0.bias']
    with pytest.raises(ConfigError, match=r'0 of 7 keys match; 7 missing \(0.bias'):
        load(tmp_path, network(), weights)
