"""The sets of photographs: their converters, on made-up samples in the layout of each source."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from experiments.photos.convert import convert
from experiments.photos.images import BCCD, prepare_photos
from experiments.study import load_study
from rdimkd_det import ConfigError

ROOT = Path(__file__).parents[2]
XML = """<annotation><object><name>{name}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>
<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object></annotation>"""


def write_image(path, width=64, height=48):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 127, np.uint8))


@pytest.fixture
def bccd(tmp_path):
    root = tmp_path / 'repository' / 'BCCD'
    for folder in ('Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    samples = {
        'a': ('WBC', (8, 6, 30, 40)),
        'b': ('RBC', (5, 5, 5, 9)),
        'c': ('RBC', (0, 0, 70, 9)),
    }
    for name, (label, box) in samples.items():
        write_image(root / 'JPEGImages' / f'{name}.jpg')
        (root / 'Annotations' / f'{name}.xml').write_text(XML.format(name=label, box=box))
    (root / 'ImageSets/Main/trainval.txt').write_text('a\nb\n')
    (root / 'ImageSets/Main/test.txt').write_text('c\n')
    return tmp_path / 'repository'


@pytest.fixture
def aquarium(tmp_path):
    root = tmp_path / 'repository' / 'dataset' / 'aquarium_pretrain'
    for folder, line in (('train', '4 0.5 0.5 0.25 0.5'), ('valid', ''), ('test', '0 1 1 0.5 0.5')):
        write_image(root / folder / 'images' / f'{folder}.jpg')
        (root / folder / 'labels').mkdir(parents=True)
        (root / folder / 'labels' / f'{folder}.txt').write_text(line)
    return tmp_path / 'repository'


def read(out, split):
    content = json.loads((out / 'annotations' / f'{split}.json').read_text())
    names = {it['id']: it['name'] for it in content['categories']}
    images = [(it['file_name'], it['width'], it['height']) for it in content['images']]
    return images, [(names[it['category_id']], it['bbox']) for it in content['annotations']]


def test_bccd(bccd, tmp_path):
    assert convert('bccd', bccd, tmp_path / 'out') == {'train': 2, 'val': 1}
    images, boxes = read(tmp_path / 'out', 'train')
    assert images == [('a.jpg', 64, 48), ('b.jpg', 64, 48)]
    assert boxes == [('WBC', [8.0, 6.0, 22.0, 34.0])]  # the box without an area is dropped
    assert read(tmp_path / 'out', 'val')[1] == [('RBC', [0.0, 0.0, 64.0, 9.0])]  # clipped
    assert (tmp_path / 'out' / 'images' / 'c.jpg').is_file()
    prepare_photos(tmp_path / 'out', BCCD, None)


def test_aquarium(aquarium, tmp_path):
    assert convert('aquarium', aquarium, tmp_path / 'out') == {'train': 1, 'val': 1, 'test': 1}
    assert read(tmp_path / 'out', 'train')[1] == [('shark', [24.0, 12.0, 16.0, 24.0])]
    assert read(tmp_path / 'out', 'val')[1] == []
    assert read(tmp_path / 'out', 'test')[1] == [('fish', [48.0, 36.0, 16.0, 12.0])]


def test_convert__command_line(bccd, tmp_path):
    command = [sys.executable, '-m', 'experiments.photos.convert', 'bccd', bccd, tmp_path / 'out']
    for status, message in ((0, '2 images for train, 1 images for val'), (2, 'out exists')):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status and message in done.stdout + done.stderr


def test_convert__another_layout_leaves_nothing(bccd, tmp_path):
    (bccd / 'BCCD' / 'Annotations' / 'c.xml').write_text('<annotation>')
    with pytest.raises(ConfigError, match=r'not the layout of github\.com/Shenggan/BCCD_Dataset'):
        convert('bccd', bccd, tmp_path / 'out')
    assert [path.name for path in tmp_path.iterdir()] == ['repository']


def test_prepare__says_where_the_photographs_are(tmp_path):
    with pytest.raises(ConfigError, match='get commit d272fb1 of github'):
        prepare_photos(tmp_path, BCCD, None)


@pytest.mark.parametrize('name', ['bccd', 'aquarium'])
def test_study__its_groups_have_rows(name):
    study = load_study(name)
    assert all(study.select([group]) for group in study.groups)
