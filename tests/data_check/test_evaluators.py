"""What the evaluator needs; each case is tried on the evaluator itself."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from mmdet.evaluation import CocoMetric


def without(key):
    return lambda entry: entry.pop(key)


def set_to(**values):
    return lambda entry: entry.update(values)


def as_text(key):
    return lambda entry: entry.update({key: str(entry[key])})


STOPS = {
    'no iscrowd': (without('iscrowd'), "lack 'iscrowd', which the evaluator needs"),
    'null': (set_to(iscrowd=None), 'have iscrowd=None in what the evaluator reads'),
    'text': (set_to(iscrowd='no'), "have iscrowd='no' in what the evaluator reads"),
    'infinity': (set_to(iscrowd=float('inf')), 'have iscrowd=inf in what the evaluator reads'),
    'id': (lambda entry: entry.update(id=f'a{entry["id"]}'), "have id='a1' in what"),
}
# What ends in an AP of -1, or far below 1, where all is found.
SILENT = {
    'image_id': (
        as_text('image_id'),
        "image_id is that of no image (image_id is '0', the ids are 0",
    ),
    'category_id': (as_text('category_id'), 'category_id is that of no category (category_id is'),
    'crowds': (set_to(iscrowd='0'), "they are all crowds (iscrowd='0')"),
    'area': (set_to(area=-1), 'none can be compared'),
    'large area': (set_to(area=1e11), 'have area=100000000000.0 in what the evaluator reads'),
    'ids': (set_to(id=7), '23 annotations of {} have the id of another one, e.g. 7'),
}


def evaluated(path: str) -> float | None:
    """Return the AP of a detector that finds every box of the healthy file."""
    healthy = json.loads(Path(path).with_name('annotations.json').read_text())
    content = json.loads(Path(path).read_text())
    metric = CocoMetric(ann_file=path)
    metric.dataset_meta = dict(classes=('red', 'green', 'blue'))
    for image in content['images']:
        found = [it for it in healthy['annotations'] if str(it['image_id']) == str(image['id'])]
        boxes = torch.tensor([it['bbox'] for it in found]).float()
        boxes[:, 2:] += boxes[:, :2]
        instances = dict(
            bboxes=boxes,
            scores=torch.ones(len(found)),
            labels=torch.tensor([it['category_id'] for it in found]),
        )
        sample = dict(pred_instances=instances, ori_shape=(64, 80), img_id=image['id'])
        metric.process({}, [sample])
    return metric.evaluate(len(content['images']))['coco/bbox_mAP']


@pytest.fixture(autouse=True)
def numbered_from_one(data):
    """Pycocotools never counts an annotation of id 0 as found."""
    for name in ('val', 'annotations'):
        data.change(
            name, lambda content: [it.update(id=it['id'] + 1) for it in content['annotations']]
        )


def test_evaluators__healthy(data):
    assert evaluated(data.path('val')) == 1


@pytest.mark.parametrize('case', STOPS)
def test_needs__that_stop_it(data, case):
    change, expected = STOPS[case]
    data.each('val', change, where=lambda n: n < 4)
    line = data.error('val')
    assert line.startswith(f'val data: 4 of 24 annotations of {data.path("val")} {expected}'), line
    with pytest.raises((KeyError, TypeError, ValueError, OverflowError)):
        evaluated(data.path('val'))


@pytest.mark.parametrize('case', SILENT)
def test_needs__that_make_it_wrong(data, case):
    change, expected = SILENT[case]
    data.each('val', change)
    found = [it for it in data.look('val') if it.severity == 'error']
    assert any(expected.format(data.path('val')) in it.text for it in found), found
    assert evaluated(data.path('val')) < 0.5


def test_needs__a_file_or_the_annotations_in_the_samples(data):
    data.cfg.val_evaluator.pop('ann_file')
    assert data.error('val') == (
        'val data: the CocoMetric has no ann_file; set val_evaluator.ann_file to the annotations '
        'of the data set.'
    )
    data.cfg.val_dataloader.dataset.pipeline[-1].meta_keys = ('img_id', 'instances')
    assert data.look('val') == []


def test_needs__iscrowd_is_none_of_the_training(data):
    data.each('train', without('iscrowd'))
    assert data.look('train') == []


def test_needs__nothing_where_results_are_only_written(data):
    data.change('test', lambda content: content.pop('annotations'))
    assert 'AP would be -1' in data.error('test')
    data.cfg.test_evaluator.update(format_only=True, outfile_prefix='x')
    assert data.look('test') == []


def test_needs__area_of_another_file_than_the_loaders(data):
    data.cfg.val_evaluator.ann_file = data.path('test')
    data.each('test', without('area'))
    line = data.error('val')
    assert f'annotations of {data.path("test")} lack' in line or "lack 'area'" in line


def of_images(*ids):
    def change(content):
        for name, key in (('images', 'id'), ('annotations', 'image_id')):
            content[name] = [it for it in content[name] if it[key] in ids]

    return change


def test_images__missing_in_the_evaluators_file(data):
    data.cfg.val_evaluator.ann_file = data.path('test')
    data.change('test', of_images(0, 1, 2))
    line = data.error('val')
    assert f"9 of the 12 images of {data.path('val')} are not in the evaluator's" in line
    assert data.path('test') in line and f'set val_evaluator.ann_file={data.path("val")}' in line


def test_images__more_in_the_evaluators_file(data):
    data.cfg.val_evaluator.ann_file = data.path('test')
    data.change('val', of_images(0, 1, 2))
    found = data.only('val')
    assert found.severity == 'warning'
    assert f"9 annotated images of the evaluator's {data.path('test')} are not loaded" in found.text
    assert data.path('val') in found.text


def test_images__of_equal_ids_and_other_names(data):
    data.cfg.val_evaluator.ann_file = data.path('test')
    data.change(
        'test', lambda content: [it.update(file_name=f'b{it["id"]}') for it in content['images']]
    )
    line = data.error('val')
    assert f"id 0 is unseen_0.png in {data.path('val')} and b0 in the evaluator's" in line


def test_images__of_another_format_in_the_evaluators_file(data):
    data.cfg.val_evaluator.ann_file = data.path('test')

    def as_jpeg(content):
        for entry in content['images']:
            entry['file_name'] = f'unseen_{entry["id"]}.jpg'

    data.change('test', as_jpeg)
    assert data.look('val') == []


def test_images__ids_as_text(data):
    data.cfg.val_evaluator.ann_file = data.path('test')
    data.change('test', lambda content: [it.update(id=str(it['id'])) for it in content['images']])
    data.each('test', as_text('image_id'))
    assert "e.g. id 0 (there it is '0')" in data.error('val')


def test_images__of_a_part_of_the_data_set(data):
    data.cfg.val_dataloader.dataset.indices = 4
    assert "8 annotated images of the evaluator's" in data.only('val').text


def test_images__of_concatenated_data_sets(data):
    """One file for the evaluator of two data sets must have the images of both."""
    both = copy.deepcopy(data.cfg.val_dataloader.dataset)
    whole = data.root / 'both.json'
    shutil.copy(data.path('val'), whole)
    data.change('val', of_images(*range(6)))
    data.change('test', of_images(*range(6, 12)))
    parts = [both, dict(both, ann_file='test.json')]
    data.cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    data.cfg.val_evaluator.ann_file = str(whole)
    assert data.look('val') == []


def test_images__several_entries_of_one_id(data):
    data.change('train', lambda content: content['images'][3].update(id=2))
    found = [it for it in data.look('train') if it.topic == 'Images']
    assert found[0].text.startswith(
        f'12 images of {data.path("train")} have 11 ids, e.g. 2 for 2.png and 3.png: '
    )
    data.change('train', lambda content: [it.update(id=0) for it in content['images']])
    assert '12 images of' in data.error('train') or 'image_id' in data.error('train')


def test_images__each_metric_is_of_its_own_data_set(data):
    """The first data set is of a kind that is not looked at."""
    data.change('test', lambda content: [it.update(id=it['id'] + 50) for it in content['images']])
    data.each('test', lambda entry: entry.update(image_id=entry['image_id'] + 50))
    val, test = (data.cfg[f'{split}_dataloader'].dataset for split in ('val', 'test'))
    data.cfg.val_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[{**val, 'type': 'LVISV1Dataset'}, val, test]
    )
    metrics = [dict(type='LVISMetric'), data.cfg.val_evaluator, data.cfg.test_evaluator]
    data.cfg.val_evaluator = dict(
        type='MultiDatasetsEvaluator', metrics=metrics, dataset_prefixes=['x', 'y', 'z']
    )
    assert data.look('val') == []
    metrics[1]['ann_file'] = data.path('test')
    data.cfg.val_evaluator['metrics'] = metrics
    assert f"are not in the evaluator's {data.path('test')}" in data.error('val')


def test_classes__each_metric_has_those_of_its_own_data_set(data):
    """As in ODinW's configs, whose detectors are asked for the classes by name."""

    def rename(content):
        for entry in content['categories']:
            entry['name'] = entry['name'].upper()

    data.change('test', rename)
    val, test = (data.cfg[f'{split}_dataloader'].dataset for split in ('val', 'test'))
    names = [name.upper() for name in val.metainfo.classes]
    test = {**test, 'metainfo': dict(classes=names), 'return_classes': True}
    data.cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[val, test])
    metrics = [data.cfg.val_evaluator, data.cfg.test_evaluator]
    data.cfg.val_evaluator = dict(
        type='MultiDatasetsEvaluator', metrics=metrics, dataset_prefixes=['x', 'y']
    )
    assert data.look('val') == []
    test['return_classes'] = False
    data.cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[val, test])
    assert "label 0 is 'RED'" in data.error('val')
