"""Names of classes and categories, and their order in each file that is used."""

import pytest
from mmengine.runner import Runner
from runs import CLASSES
from torch import nn

from rdimkd_det.commands.launch import report_before_training
from rdimkd_det.data_check import look_at


def classes(data, *names, splits=('train', 'val', 'test')):
    for split in splits:
        data.cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=names)


def named(names):
    def change(content):
        content['categories'] = [dict(id=n, name=name) for n, name in enumerate(names)]

    return change


def reverse(content):
    content['categories'].reverse()


def test_doubles__two_categories_of_one_name(data):
    data.change('train', named(['red', 'red', 'blue']))
    classes(data, 'red')
    assert data.error('train') == (
        f"train data: 2 categories of {data.path('train')} are named 'red' (ids 0 and 1): "
        f'MMDetection gives them a label each, 2 labels for 1 classes, and the last ones are '
        f"beyond the head, or its background; give all annotations of 'red' one of these ids and "
        f'remove the other category, or rename one.'
    )
    classes(data, 'blue')
    assert data.look('train') == []  # the double one is not selected


def test_doubles__in_the_evaluator(data):
    data.cfg.val_evaluator.ann_file = data.path('test')
    data.change('test', named(['red', 'green', 'blue', 'blue']))
    assert "2 categories of {} are named 'blue'".format(data.path('test')) in data.error('val')


def test_doubles__ids_and_classes(data):
    data.change('train', lambda content: content['categories'][1].update(id=0))
    assert "the categories 'red' and 'green' of" in data.error('train')
    data.change('train', named(CLASSES))
    classes(data, 'red', 'green', 'red')
    assert "metainfo.classes has 'red' 2 times" in data.error('train')


@pytest.mark.parametrize('split', ['val', 'test'])
def test_orders__of_one_file_against_the_training_files(data, split):
    data.change(split, reverse)
    line = data.error(split)
    assert line.startswith(
        f"{split} data: label 0 is 'blue' in {data.path(split)} and 'red' in {data.path('train')}: "
        f'labels follow the order of the categories in each file, whatever metainfo.classes says, '
        f'so that the AP would be that of permuted labels; write the categories of '
        f'{data.path(split)} in the order of {data.path("train")}'
    )
    # The remedy cures it.
    data.change(split, reverse)
    assert data.look('train', 'val', 'test') == []


def test_orders__test_is_told_when_a_training_starts(data):
    data.change('test', reverse)
    assert data.only('train', 'val', thorough=False).severity == 'warning'


def test_orders__of_two_training_files(data):
    data.change('test', reverse)
    one = data.cfg.train_dataloader.dataset
    other = dict(one, ann_file='test.json')
    data.cfg.test_dataloader.dataset.ann_file = 'train.json'
    data.cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[one, other])
    assert 'one class is trained with two labels' in data.error('train')


def test_orders__of_the_evaluator_alone(data):
    data.change('test', reverse)
    data.cfg.val_evaluator.ann_file = data.path('test')
    found = [it for it in data.look('train', 'val') if it.split == 'val']
    assert [it.topic for it in found] == ['Evaluator']
    assert f"label 0 is 'blue' in {data.path('test')} and 'red' in" in found[0].text


def test_orders__of_all_files_against_the_classes(data):
    """The labels agree, only their names do not; the advice cures it."""
    classes(data, 'blue', 'green', 'red')
    found = data.look('train', 'val', 'test')
    assert {it.severity for it in found} == {'warning'}
    assert all(
        "set metainfo.classes=('red', 'green', 'blue') in all data" in it.remedy for it in found
    )
    classes(data, 'red', 'green', 'blue')
    assert data.look('train', 'val', 'test') == []


def test_orders__without_the_training_files(data):
    data.change('test', reverse)
    data.cfg.train_dataloader.dataset.ann_file = 'elsewhere.json'
    found = data.only('test')
    assert found.severity == 'warning' and 'that the detector was trained on' in found.remedy


def test_names__that_look_alike(data):
    data.change('train', named([1, 2, 3]))
    classes(data, '1', '2', '3')
    assert data.error('train') == (
        f"train data: no class of the data set ('1', '2', '3') is a category of "
        f"{data.path('train')} (1, 2, 3) ('1' and 1 are of two types, str and int); write the "
        f'names of the categories in the file as text.'
    )
    data.change('train', named(['red ', 'green', 'blue']))
    classes(data, *CLASSES)
    found = [it for it in data.look('train') if 'not among' in it.text]
    assert (
        f"'red': not among the categories of {data.path('train')} ('red ', 'green'" in found[0].text
    )


def test_names__missing_in_the_evaluators_file(data):
    """A label beyond its categories is an IndexError of CocoMetric."""
    data.cfg.val_evaluator.ann_file = data.path('test')
    data.change('test', lambda content: content['categories'].pop())
    line = data.error('val')
    assert 'blue: not among the categories of' in line and 'IndexError' in line


def test_names__a_class_that_is_not_there(data):
    classes(data, 'red', 'Green', 'blue')
    found = [it for it in data.look('train') if 'Green' in it.text]
    assert [it.severity for it in found] == ['warning']
    assert found[0].text == (
        f'Green: not among the categories of {data.path("train")} (red, green, blue); did you mean '
        f"'green'?"
    )
    assert found[0].remedy == (
        'write metainfo.classes as in the file: MMDetection drops the boxes of a class that is '
        'missing there, and shifts the labels of the classes after it'
    )


def test_names__no_class_is_a_category(data):
    classes(data, 'Red', 'light_green')
    assert data.error('val') == (
        f'val data: no class of the data set (Red, light_green) is a category of '
        f"{data.path('val')} (red, green, blue); did you mean 'red'?; write the names in "
        f'val_dataloader.dataset.metainfo.classes as they are in the file.'
    )
    data.cfg.train_dataloader.dataset.pop('metainfo')
    assert '(person, bicycle, car' in data.error('train')


def test_names__one_of_several_files_is_enough(data):
    one = data.cfg.train_dataloader.dataset
    other = dict(one, ann_file='test.json')
    data.change('test', named(['cat', 'dog', 'cow']))
    data.cfg.test_dataloader = None
    data.cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[other, one])
    assert {it.severity for it in data.look('train')} == {'warning'}


def test_names__files_of_other_formats_are_left_alone(data):
    data.cfg.train_dataloader.dataset.type = 'Objects365V1Dataset'  # labels by its own list
    classes(data, 'zebra', splits=('train',))
    assert data.look('train') == []


def test_names__one_name_without_a_comma(data, tmp_path, monkeypatch):
    data.cfg.train_dataloader.dataset.metainfo = dict(classes='red')
    assert data.error('train') == (
        "train data: metainfo.classes must be a tuple or list of names, got 'red'; "
        "write ('red',), with a comma."
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'red').write_text('red\ngreen\nblue\n')  # mmengine reads such a file
    assert data.look('train') == []


def test_orders__labels_are_those_of_mmdetection(data):
    """MMDetection does what the messages say: it labels known classes in the file's order."""

    def labels(*names):
        classes(data, *names)
        dataset = Runner.build_dataloader(data.cfg.train_dataloader).dataset
        return dataset.cat2label  # by the ids of red, green and blue

    assert labels('red', 'green', 'blue') == {0: 0, 1: 1, 2: 2}
    assert labels('red', 'Green', 'blue') == {0: 0, 2: 1}
    assert labels('blue', 'red') == {0: 0, 2: 1}


def test_report_before_training__of_a_plain_model(data):
    def report():
        return report_before_training(data.cfg, nn.Identity(), look_at(data.cfg, ['train', 'val']))

    assert report() is None
    classes(data, 'red', 'blue', 'green')
    assert {finding.topic for finding in report().findings} == {'Classes'}


def test_orders__of_other_classes(data):
    """A class that train lacks shifts the labels; another order would not help."""
    classes(data, 'green', 'blue', splits=('train',))
    line = data.error('train', 'val')
    assert "label 0 is 'red' in" in line and 'the same metainfo.classes' in line


def test_names__a_list_is_none(data):
    data.change('train', lambda content: content['categories'][0].update(name=['red']))
    assert "'name' must be a number or text in the category {'id': 0, 'name': ['red']}" in (
        data.error('train')
    )


def test_names__thousands_take_no_time(data):
    """LVIS has 1203; a cube of that number would be minutes."""
    names = [f'class {n}' for n in range(5000)]
    entries = [dict(id=n, name=name) for n, name in enumerate(names)]
    for split in ('train', 'val', 'test'):
        data.change(split, lambda content: content.update(categories=entries))
    classes(data, *names, splits=('train', 'val', 'test'))
    assert {found.severity for found in data.look('train', 'val')} == {'warning'}
