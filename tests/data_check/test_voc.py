"""VOC data sets: one XML file for each image."""

import cv2
import numpy as np
import pytest
from looked_at import Data
from mmengine.runner import Runner

from rdimkd_det.data_check import look_at

OBJECT = (
    '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>5</ymin><xmax>40</xmax><ymax>30</ymax>'
    '</bndbox></object>'
)
SIZE = '<size><width>80</width><height>64</height></size>'


@pytest.fixture
def voc(tmp_path):
    """Return a config whose training data are a VOC data set, healthy at first."""
    data = Data(tmp_path)
    root = tmp_path / 'voc'
    for folder in ('Annotations', 'JPEGImages'):
        (root / folder).mkdir(parents=True)
    for n in range(6):
        cv2.imwrite(str(root / f'JPEGImages/{n}.jpg'), np.zeros((64, 80, 3), np.uint8))
        objects = OBJECT.format('red', 4) + OBJECT.format(('green', 'blue')[n % 2], 9)
        (root / f'Annotations/{n}.xml').write_text(f'<annotation>{SIZE}{objects}</annotation>')
    (root / 'train.txt').write_text(''.join(f'{n}\n' for n in range(6)))
    data.cfg.train_dataloader.dataset.update(
        type='VOCDataset', data_root=str(root), ann_file='train.txt',
        data_prefix=dict(sub_data_root=''),
    )  # fmt: skip
    data.xml = lambda n: root / f'Annotations/{n}.xml'
    data.voc = root
    assert data.look('train') == []
    return data


@pytest.mark.parametrize(
    'content, expected',
    [
        ('', 'is damaged or empty (no element found'),
        ('<annotation><object>', 'is damaged or empty ('),
        ('<annotation><object><bndbox/></object></annotation>', 'has an object without <name>'),
        ('<annotation><object><name>red</name></object></annotation>', 'without <bndbox>'),
        (f'<a>{OBJECT.format("red", "x")}</a>', "has 'x' as <xmin>, which must be a number"),
        ('<a><size><width>8</width></size></a>', 'has a <size> without <height>'),
    ],
)
def test_files__damaged_ones_are_named(voc, content, expected):
    voc.xml(3).write_text(content)
    line = voc.error('train')
    assert line.startswith(f'train data: annotations {voc.xml(3)} of {voc.voc}/train.txt: the file')
    assert expected in line
    with pytest.raises(Exception):  # noqa: B017  # MMDetection's own, of many types
        Runner.build_dataloader(voc.cfg.train_dataloader)


def test_files__missing_ones_are_named(voc):
    voc.xml(3).unlink()
    assert f'annotations {voc.xml(3)} of' in voc.error('train')
    assert 'No such file or directory' in voc.error('train')


def test_images__missing_ones_are_named(voc):
    (voc.voc / 'JPEGImages/2.jpg').unlink()
    assert f'1 of the 6 images of {voc.voc}/train.txt is missing, e.g. ' in voc.error('train')


def test_losses__names_that_are_no_classes(voc):
    for n in range(6):
        voc.xml(n).write_text(voc.xml(n).read_text().replace('>red<', '>Red<'))
    assert 'no object of red in' in voc.only('train').text
    for name in ('green', 'blue'):
        for n in range(6):
            voc.xml(n).write_text(voc.xml(n).read_text().replace(f'>{name}<', f'>{name}.<'))
    line = voc.error('train')
    assert "(their names: 'Red', " in line and 'write metainfo.classes as the names in' in line


def test_losses__are_those_of_mmdetection(voc):
    voc.xml(1).write_text(voc.xml(1).read_text().replace('red', 'grey'))
    loaded = Runner.build_dataloader(voc.cfg.train_dataloader).dataset
    number = sum(len(loaded.get_data_info(n)['instances']) for n in range(len(loaded)))
    assert look_at(voc.cfg, ['train']).sets[0].num_objects == number == 11


def test_geometry__boxes_without_an_area(voc):
    voc.xml(1).write_text(voc.xml(1).read_text().replace('>4<', '>40<'))
    assert '1 of 12 boxes of' in voc.only('train').text


def test_losses__boxes_below_the_least_size(voc):
    voc.cfg.train_dataloader.dataset.filter_cfg = dict(bbox_min_size=26)  # all are 25 high
    assert 'have a side below filter_cfg.bbox_min_size' in voc.error('train')
    loaded = Runner.build_dataloader(voc.cfg.train_dataloader).dataset
    ignored = [it['ignore_flag'] for n in range(6) for it in loaded.get_data_info(n)['instances']]
    assert ignored == [1] * 12


def test_files__of_other_classes_only_the_name_is_read(voc):
    voc.xml(1).write_text(voc.xml(1).read_text().replace('red', 'grey').replace('>4<', '>?<'))
    assert voc.look('train') == []
    assert len(Runner.build_dataloader(voc.cfg.train_dataloader).dataset) == 6


def test_files__a_list_in_another_encoding(voc):
    (voc.voc / 'train.txt').write_bytes('0\nStraße\n'.encode('latin-1'))
    assert 'train.txt cannot be read, save it as UTF-8' in voc.error('train')


def test_losses__difficult_objects_are_usual(voc):
    for number in range(4):
        text = voc.xml(number).read_text()
        voc.xml(number).write_text(text.replace('<name>', '<difficult>1</difficult><name>', 1))
    found = look_at(voc.cfg, ['train'])
    assert found.sets[0].lost['difficult'] == 4
    assert all(it.severity == 'ok' for it in found.findings)
