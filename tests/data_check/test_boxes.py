"""Boxes that loading loses, with the reason that is true of MMDetection's own loading."""

import numpy as np
import pytest
from mmengine.runner import Runner

from rdimkd_det.data_check import look_at


def set_to(**values):
    return lambda entry: entry.update(values)


def as_text(*keys):
    return lambda entry: entry.update({key: str(entry[key]) for key in keys})


def in_shares(entry):
    x, y, w, h = entry['bbox']
    entry['bbox'] = [x / 80, y / 64, w / 80, h / 64]


def as_corners(entry):
    x, y, w, h = entry['bbox']
    entry['bbox'] = [x, y, x + w, y + h]


CASES = {
    'area 0': (set_to(area=0), 'have an area of 0 or less', 'write area as width times height'),
    'no image': (set_to(image_id=999), 'have an image_id that no image has', 'write image_id as'),
    'image as text': (
        as_text('image_id'),
        "image_id is '0' where the image has id 0",
        'as numbers',
    ),
    'category as text': (
        as_text('category_id'),
        'where the category has id',
        'category_id alike, both as numbers',
    ),
    'no category': (set_to(category_id=77), 'have a category_id that no', 'write category_id as'),
    'thin': (set_to(bbox=[3, 4, 0.5, 20]), 'have a width or height below 1 pixel', 'in pixels'),
    'outside': (set_to(bbox=[200, 4, 10, 20]), 'lie outside of their image', 'compare bbox'),
    'crowds': (set_to(iscrowd=1), 'are crowds (iscrowd)', 'write iscrowd as the number 0'),
    'crowds as text': (set_to(iscrowd='0'), "the text '0', which is true", 'as the number 0'),
    'ignored': (set_to(ignore=1), "are marked 'ignore'", "remove 'ignore'"),
    'not a number': (set_to(bbox=[float('nan'), 4, 10, 20]), 'NaN or infinity', 'write bbox'),
}


@pytest.mark.parametrize('case', CASES)
def test_losses__all(data, case):
    change, reason, remedy = CASES[case]
    data.each('train', change)
    line = data.error()
    path = data.path('train')
    assert line.startswith(f'train data: all 24 boxes of {path} are lost: 24 '), line
    assert reason in line and remedy in line.rpartition(';')[2], line
    assert 'e.g. annotation id=0, ' in line
    assert 'metainfo.classes' not in line  # which is right


@pytest.mark.parametrize('case', CASES)
def test_losses__some(data, case):
    change, reason, remedy = CASES[case]
    data.each('train', change, where=lambda n: n % 2)
    found = [it for it in data.look('train') if 'lost' in it.text or 'beyond' not in it.text]
    found = [it for it in found if it.topic == 'Boxes']
    assert len(found) == 1 and found[0].severity == 'warning', found
    assert found[0].text.startswith(f'12 of 24 boxes of {data.path("train")} are lost: 12 ')
    assert reason in found[0].text and remedy in found[0].remedy
    assert (found[0].count, found[0].total) == (12, 24)


@pytest.mark.parametrize('case', CASES)
def test_losses__are_those_of_mmdetection(data, case):
    data.each('train', CASES[case][0], where=lambda n: n % 3 == 0)
    data.cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True, min_size=16)
    loaded = Runner.build_dataloader(data.cfg.train_dataloader).dataset
    infos = [loaded.get_data_info(n) for n in range(len(loaded))]
    flags = [it['ignore_flag'] for info in infos for it in info['instances']]
    summary = look_at(data.cfg, ['train']).sets[0]
    assert summary.num_objects == flags.count(0)
    assert summary.num_images == len(loaded)
    assert summary.lost.get('crowd', 0) == flags.count(1)
    counts = np.bincount(
        [it['bbox_label'] for info in infos for it in info['instances'] if not it['ignore_flag']],
        minlength=3,
    )
    assert list(summary.objects_by_class.values()) == counts.tolist()


def test_losses__several_reasons_are_counted_each(data):
    data.each('train', set_to(area=0), where=lambda n: n < 4)
    data.each('train', set_to(bbox=[3, 4, 0, 20]), where=lambda n: 4 <= n < 10)
    text = data.only('train').text
    assert text.startswith(f'10 of 24 boxes of {data.path("train")} are lost: 6 have a width or ')
    assert '; 4 have an area of 0' in text


def test_losses__a_few_of_many_are_not_worth_a_word(data):
    def many(content):
        entry = content['annotations'][0]
        more = [dict(entry, id=100 + n, bbox=[1, 2, 3 + n / 100, 4]) for n in range(2000)]
        content['annotations'] += more
        content['annotations'][3]['area'] = 0

    data.change('train', many)
    assert data.look('train') == []
    (told,) = [it for it in look_at(data.cfg, ['train']).findings if it.topic == 'Boxes']
    assert told.severity == 'ok' and 'area 0 1' in told.text


def test_losses__a_selection_of_classes_is_intended(data):
    for split in ('train', 'val'):
        data.cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=('red',))
    assert data.look() == []


def test_losses__one_of_several_files_is_enough(data):
    data.each('train', set_to(area=0))
    bad = data.cfg.train_dataloader.dataset
    good = dict(bad, ann_file='val.json')
    both = dict(type='ConcatDataset', datasets=[bad, good])
    data.cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=both)
    assert data.only('train').severity == 'warning'
    data.each('val', set_to(area=-1))
    assert data.error('train').startswith(f'train data: all 24 boxes of {data.path("train")}')


def test_losses__images_below_min_size(data):
    data.cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True, min_size=65)
    line = data.error('train')
    assert 'are in images smaller than filter_cfg.min_size' in line
    assert 'lower filter_cfg.min_size' in line


def test_losses__no_annotation(data):
    data.change('train', lambda content: content.update(annotations=[]))
    assert data.error('train').startswith(f'train data: no annotation in {data.path("train")}; ')


@pytest.mark.parametrize('split', ['train', 'val'])
def test_geometry__shares_of_the_image(data, split):
    data.each(split, in_shares)
    assert data.error(split).startswith(
        f'{split} data: the boxes of {data.path(split)} are shares of the image, not pixels: 24 of '
        f'24 lie within 0 and 1, e.g. annotation id=0, '
    )


def test_geometry__corners(data):
    data.each('train', as_corners)
    line = data.error('train')
    assert f'the boxes of {data.path("train")} seem to be corners, [x1, y1, x2, y2]: ' in line
    assert line.endswith('; write bbox as [x1, y1, x2 - x1, y2 - y1].')


def test_geometry__beyond_the_image(data):
    data.each('train', set_to(bbox=[10, 10, 200, 20]), where=lambda n: n % 2)
    found = data.only('train')
    assert found.text.startswith(f'12 of 24 boxes of {data.path("train")} reach beyond their image')


def test_classes__without_an_object(data):
    data.each('train', set_to(category_id=0), where=lambda n: True)
    found = data.only('train')
    assert found.text == f'no object of green, blue in {data.path("train")}'
    assert data.look('val') == []


def test_indices__other_images_do_not_count(data):
    data.cfg.train_dataloader.dataset.indices = 3
    (summary,) = look_at(data.cfg, ['train']).sets
    assert (summary.num_images, summary.num_with_objects, summary.num_objects) == (3, 3, 6)
    data.each('train', lambda entry: entry.update(image_id=str(entry['image_id'])))
    assert 'have an image_id that no image has' in data.error('train')


def test_file__none_is_named(data):
    data.cfg.train_dataloader.dataset.ann_file = ''
    assert data.error('train') == 'train data: the CocoDataset has no ann_file.'


def test_repeated__exports_merged_twice(data):
    def merge(content):
        entries = content['annotations']
        copies = [{**entry, 'id': entry['id'] + 100} for entry in entries[:6]]
        near = [{**entries[7], 'id': 200, 'category_id': 1 + entries[7]['category_id'] % 3}]
        near += [{**entries[8], 'id': 201, 'bbox': [1, *entries[8]['bbox'][1:]]}]
        content['annotations'] = copies[::-1] + entries + near

    data.change('val', merge)
    found = data.only('val')
    assert found.severity == 'warning' and (found.count, found.total) == (6, 32)
    assert found.text.startswith(
        f'6 of 32 objects of {data.path("val")} repeat another one: the same image, class and box, '
        f'e.g. annotation id=0, '
    )
