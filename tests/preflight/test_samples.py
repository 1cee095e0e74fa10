"""The weights that the student starts from."""

import json
from pathlib import Path

import pytest
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
    text, _ = found(done, 'ok')['load_from']
    assert text == (
        f'epoch_25.pth: {keys - 2} of {keys} keys of the student match; '
        f'bbox_head.conv_cls.weight, bbox_head.conv_cls.bias have another shape, as for other '
        f'classes, and are initialised randomly'
    )
    assert found(done, 'error').keys() == {'Classes'}
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


def test_load_from__keys_with_a_prefix(preflight, trained, tmp_path):
    weights = load(trained.checkpoint)['state_dict']
    torch.save({f'model.{key}': value for key, value in weights.items()}, tmp_path / 'w.pth')
    done = preflight('--samples', 0, change=start_from(tmp_path / 'w.pth'))
    text, _ = found(done, 'error')['load_from']
    assert "all match without the prefix 'model.': save the state dict with it taken off" in text


def empty_most(folder, trained, keep):
    """Write the data set's annotations without the objects of all images but ``keep``."""
    content = json.loads((trained.data / 'annotations.json').read_text())
    content['annotations'] = [it for it in content['annotations'] if it['image_id'] in keep]
    (folder / 'few.json').write_text(json.dumps(content))

    def change(cfg):
        cfg.train_dataloader.dataset.update(
            ann_file=str(folder / 'few.json'), filter_cfg=dict(filter_empty_gt=False)
        )
        cfg.train_dataloader.batch_size = 2

    return change


def test_samples__drawn_until_there_are_objects(preflight, trained, tmp_path):
    """One of 24 images has any; a batch with it is found, whatever the first ones have."""
    done = preflight('--samples', 4, change=empty_most(tmp_path, trained, keep=[17]))
    assert 'Training data' not in found(done, 'error')
    assert done.report['figures']['recommended_loss_weight']['neck'] > 0


def test_samples__no_object_in_any_image(preflight, trained, tmp_path):
    done = preflight('--samples', 4, change=empty_most(tmp_path, trained, keep=[]))
    text, _ = found(done, 'error')['Boxes']  # the look at the data finds it before
    assert done.status == 1 and text.startswith('no annotation in')


@pytest.mark.parametrize('wrapper', [None, 'RepeatDataset', 'ConcatDataset'])
def test_samples__looks_through_wrappers(trained, config, tmp_path, wrapper):
    def change(cfg):
        empty_most(tmp_path, trained, keep=[17])(cfg)
        leaf = cfg.train_dataloader.dataset
        if wrapper == 'RepeatDataset':
            cfg.train_dataloader.dataset = dict(type=wrapper, times=2, dataset=leaf)
        elif wrapper == 'ConcatDataset':
            cfg.train_dataloader.dataset = dict(type=wrapper, datasets=[leaf, leaf])

    _, batches = load_samples(Config.fromfile(config(change)), 4)
    assert batches and all(
        any(len(sample.gt_instances) for sample in batch['data_samples']) for batch in batches
    )
