"""Classes of a data set, compared with the categories of its annotation file."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from runs import fcos, run_config, write_data
from torch import nn

from rdimkd_det import ConfigError
from rdimkd_det.commands.checks import check_data
from rdimkd_det.commands.launch import report_before_training
from rdimkd_det.files import annotations
from rdimkd_det.files.annotations import category_names
from rdimkd_det.preflight.categories import check_categories
from rdimkd_det.preflight.report import Report

PETS = [dict(id=3, name='cat'), dict(id=7, name='dög')]


def written(folder: Path, text: str) -> str:
    path = folder / 'pets.json'
    path.write_text(text, encoding='utf-8')
    return str(path)


@pytest.mark.parametrize('indent', [None, 1])
@pytest.mark.parametrize('ascii_only', [True, False])
@pytest.mark.parametrize('place', [0, 1, 2])
def test_category_names__anywhere_in_the_file(tmp_path, monkeypatch, place, ascii_only, indent):
    monkeypatch.setattr(annotations, 'TAIL', 40)
    parts = [('images', [dict(id=1)] * 50), ('annotations', [dict(id=1)] * 50)]
    parts.insert(place, ('categories', PETS))
    text = json.dumps(dict(parts), indent=indent, ensure_ascii=ascii_only)
    assert category_names(written(tmp_path, text)) == ['cat', 'dög']


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        '{"images": []}',
        '{"categories": null}',
        '{"categories": ["cat"]}',
        '{"categories": [{"id": 1}]}',
        '{"categories": [{"id": 1, "name": "ca',
        '{"a": "\\"categories\\": [1]"}',
    ],
)
def test_category_names__that_cannot_be_told(tmp_path, text):
    assert category_names(written(tmp_path, text)) is None
    assert category_names(str(tmp_path)) is None
    assert category_names(str(tmp_path / 'nowhere.json')) is None


def of_classes(tmp_path: Path, *classes, **options) -> Config:
    """Return a training's config with these classes; its annotations have red, green and blue."""
    data = tmp_path / 'data'
    cfg = run_config(data if data.exists() else write_data(data), tmp_path, fcos(), **options)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=classes)
    return cfg


def findings(cfg: Config) -> list[tuple[str, str]]:
    report = Report('')
    check_categories(cfg, report)
    assert {finding.severity for finding in report.findings} <= {'warning'}
    return [(finding.text, finding.remedy) for finding in report.findings]


def test_check_categories__the_same_or_fewer(tmp_path):
    for classes in (('red', 'green', 'blue'), ('red', 'blue'), ('green',)):
        assert findings(of_classes(tmp_path, *classes)) == []


def test_check_categories__a_class_that_is_not_there(tmp_path):
    of_train, of_val = findings(of_classes(tmp_path, 'red', 'Green', 'blue'))
    assert of_train == of_val
    text, remedy = of_train
    assert text == (
        f'Green: not among the categories of {tmp_path}/data/annotations.json '
        f"(red, green, blue); did you mean 'green'?"
    )
    assert remedy == (
        'write metainfo.classes as in the file: MMDetection drops the boxes of a class that is '
        'missing there, and shifts the labels of the classes after it'
    )


def test_check_categories__in_another_order(tmp_path):
    (text, remedy), _ = findings(of_classes(tmp_path, 'blue', 'red'))
    file = f'{tmp_path}/data/annotations.json'
    assert text == f'the data set has blue, red, and {file} red, green, blue: in another order'
    assert remedy.startswith("set metainfo.classes=('red', 'blue'): labels follow the file")


def test_report_before_training__of_a_plain_model(tmp_path):
    report = report_before_training(of_classes(tmp_path, 'red', 'Green', 'blue'), nn.Identity())
    assert [finding.text.split(':')[0] for finding in report.findings] == 2 * ['Green']
    assert report_before_training(of_classes(tmp_path, 'red', 'blue'), nn.Identity()) is None


def test_check_categories__is_true_of_mmdetection(tmp_path):
    """MMDetection does what the two warnings say: it labels known classes in the file's order."""

    def labels(*classes):
        dataset = Runner.build_dataloader(of_classes(tmp_path, *classes).train_dataloader).dataset
        return dataset.cat2label  # by the ids of red, green and blue

    assert labels('red', 'green', 'blue') == {0: 0, 1: 1, 2: 2}
    assert labels('red', 'Green', 'blue') == {0: 0, 2: 1}
    assert labels('blue', 'red') == {0: 0, 2: 1}


def test_check_data__no_class_is_a_category(tmp_path):
    cfg = of_classes(tmp_path, 'Red', 'light_green')
    with pytest.raises(ConfigError) as refused:
        check_data(cfg, ['val'])
    assert str(refused.value) == (
        f'val data: no class of the data set (Red, light_green) is a category of '
        f"{tmp_path}/data/annotations.json (red, green, blue); did you mean 'red'? Write the "
        f'names in val_dataloader.dataset.metainfo.classes as they are in the file.'
    )
    cfg.train_dataloader.dataset.pop('metainfo')
    with pytest.raises(
        ConfigError, match=r'\(person, .*, \.\.\.\) is a .* blue\)\. Write the names'
    ):
        check_data(cfg, ['train'])


def test_check_data__one_of_several_files_is_enough(tmp_path):
    cfg = of_classes(tmp_path, 'red')
    reds, cats = cfg.train_dataloader.dataset, dict(cfg.train_dataloader.dataset)
    cats['ann_file'] = written(tmp_path, json.dumps(dict(categories=PETS)))
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[cats, reds])
    check_data(cfg, ['train'])
    assert len(findings(cfg)) == 1  # and it is told


def test_check_data__files_of_other_formats_are_left_alone(tmp_path):
    cfg = of_classes(tmp_path, 'zebra')
    cfg.train_dataloader.dataset.type = 'Objects365V1Dataset'  # whose labels are by its own list
    check_data(cfg, ['train'])


def test_check_data__one_name_without_a_comma(tmp_path, monkeypatch):
    cfg = of_classes(tmp_path, 'red')
    cfg.train_dataloader.dataset.metainfo = dict(classes='red')
    with pytest.raises(ConfigError) as refused:
        check_data(cfg, ['train'])
    assert str(refused.value) == (
        "train data: metainfo.classes must be a tuple or list of names, got 'red'; "
        "write ('red',), with a comma."
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'red').write_text('green\nblue\n')  # mmengine reads such a file
    check_data(cfg, ['train'])
    assert findings(cfg) == []
