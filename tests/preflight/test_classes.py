"""Do data, student and teacher mean the same classes?"""

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from preflights import found
from runs import CLASSES, load

from rdimkd_det.preflight.classes import data_classes, label_map, num_classes


def test_preflight__classes_in_another_order(preflight, trained, tmp_path):
    """Predictions are matched by class name, so the order does not change the AP."""
    checkpoint = load(trained.checkpoint)
    order = [2, 0, 1]
    weights = checkpoint['state_dict']
    for key in ('bbox_head.conv_cls.weight', 'bbox_head.conv_cls.bias'):
        weights[key] = weights[key][order]
    checkpoint['meta']['dataset_meta'] = dict(classes=[CLASSES[label] for label in order])
    torch.save(checkpoint, tmp_path / 'reordered.pth')
    same = preflight('--samples', 0, '--eval-teacher')
    other = preflight('--samples', 0, '--eval-teacher', checkpoint=tmp_path / 'reordered.pth')
    assert other.status == 0
    assert '3, the 3 of the data set among them' in found(other, 'ok')['Teacher classes'][0]
    assert other.report['figures']['teacher_ap'] == same.report['figures']['teacher_ap']


def test_preflight__num_classes(preflight):
    def change(cfg):
        cfg.model.student.bbox_head.num_classes = 80

    done = preflight('--samples', 0, change=change)
    assert done.status == 1
    text, remedy = found(done, 'error')['Classes']
    assert text == (
        "the student's bbox_head has num_classes=80, the data set has 3 (red, green, blue)"
    )
    assert remedy.startswith('set model.student.bbox_head.num_classes=3')
    assert done.out.splitlines()[-1] == '1 error: see the lines marked ->.'


def test_data_classes__wrapped_inherited_and_unnamed():
    def of(dataset):
        return data_classes(Config(dict(train_dataloader=dict(dataset=dataset))))

    pets = dict(type='CocoDataset', metainfo=dict(classes=('cat', 'dog')))
    assert of(pets) == ('cat', 'dog')
    assert of(dict(type='RepeatDataset', times=2, dataset=pets)) == ('cat', 'dog')
    assert of(dict(type='ConcatDataset', datasets=[pets, pets])) == ('cat', 'dog')
    assert of(dict(type='CocoDataset'))[:2] == ('person', 'bicycle')
    assert of(dict(type='NobodyKnows')) is None
    assert data_classes(Config(dict())) is None


def test_label_map():
    assert label_map(('dog', 'cow', 'cat'), ('cat', 'dog')) == {0: 1, 2: 0}


def test_num_classes__two_stages(small_config):
    model = MODELS.build(small_config('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model)
    assert num_classes(model) == {'roi_head.bbox_head': 80}


def test_preflight__a_class_in_another_spelling(preflight):
    def change(cfg):
        cfg.train_dataloader.dataset.metainfo = dict(classes=('red', 'green', 'Blue'))

    done = preflight('--samples', 0, change=change)
    assert done.status == 0
    text, remedy = found(done, 'warning')['Classes']
    assert text.startswith('Blue: not among the categories of ')
    assert text.endswith("annotations.json (red, green, blue); did you mean 'blue'?")
    assert remedy.startswith('write metainfo.classes as in the file')
