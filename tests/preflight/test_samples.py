"""The weights that the student starts from."""

from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from preflights import TEACHER, found
from runs import fcos, load

from rdimkd_det.distiller import distilled_student
from rdimkd_det.preflight.measurements import load_samples, prepare


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
