"""The comparison of losses, and the rivals in it."""

import json

import pytest
import reference
import torch
from mmengine.config import Config
from runs import call_module, write_step_config

from experiments import rivals
from experiments.compare_losses import loss_maps
from rdimkd_det.benchmark.preparation import prepare
from rdimkd_det.benchmark.subject import Subject

TOOL = 'experiments.compare_losses'


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    return write_step_config(tmp_path_factory.mktemp('config'))


def test_rivals__reference():
    student, teacher = torch.randn(2, 2, 6, 5, 7)
    expected = reference.plain_loss(student, teacher, torch.eye(6))
    assert rivals.L2([6])([student], [teacher]).item() == pytest.approx(expected, rel=1e-5)
    expected = reference.correlation_loss(student, teacher) / 2
    assert rivals.PKD([6])([student], [teacher]).item() == pytest.approx(expected, rel=2e-2)
    adapted = rivals.L2WithAdapter([6])
    weight, bias = (p.detach().numpy() for p in adapted.adapters[0].parameters())
    moved = reference.adapt(student, weight[:, :, 0, 0], bias)
    expected = reference.plain_loss(moved, teacher, torch.eye(6))
    assert adapted([student], [teacher]).item() == pytest.approx(expected, rel=1e-5)


def test_rivals__mgd_hides_positions():
    mask = rivals.MGD([4]).mask(torch.ones(2, 4, 40, 50))
    assert torch.equal(mask[:, :1].expand_as(mask), mask)
    assert mask.mean().item() == pytest.approx(0.35, abs=0.03)


def test_loss_maps__in_the_layout_of_the_teacher(config):
    cfg = Config.fromfile(config)
    prepare(cfg)
    subject = Subject(cfg, 2, (64, 96), torch.device('cpu'))
    student, teacher = loss_maps(subject, 'as handed over')
    assert student[0].is_contiguous() and student[0].shape == teacher[0].shape == (2, 24, 8, 12)
    assert teacher[0].is_contiguous(memory_format=torch.channels_last)
    _, teacher = loss_maps(subject, 'contiguous')
    assert teacher[0].is_contiguous()


def test_tool__times_on_both_layouts(tmp_path, config, capsys):
    arguments = ['--shape', 64, 96, '--batch', 2, '--rounds', 2, '--json', tmp_path / 'l.json']
    call_module(TOOL, config, *arguments, '--compare', 'pkd', 'standardize', 'mgd')
    report = json.loads((tmp_path / 'l.json').read_text())
    for layout in ('as handed over', 'contiguous'):
        assert list(report['losses'][layout]) == ['pkd', 'standardize', 'mgd']
    assert report['dim'] == 8 and report['rounds'] == 2 and report['command'].endswith('mgd')
    assert 'losses alone' in capsys.readouterr().out


def test_tool__nothing_to_compare(config, capsys):
    with pytest.raises(SystemExit, match='2'):
        call_module(TOOL, config, '--compare')
    assert 'expected at least one argument' in capsys.readouterr().err
