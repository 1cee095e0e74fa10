"""The sets of photographs: their converters, on made-up samples in the layout of each source."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from experiments.photos.convert import convert
from experiments.photos.halves import OtherHalf, half_of_labels
from experiments.photos.images import BCCD, prepare_photos
from experiments.photos.variants import HeadProjection, IsotropicProjection
from experiments.study import load_study
from rdimkd_det import ConfigError, PCAProjection

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
    assert not study.groups.keys() & study.table.keys()  # a name selects one or the other


def test_other_half__are_the_images_without_labels(tmp_path):
    names = ['d.jpg', 'a.jpg', 'c.jpg', 'b.jpg']
    for name in names:
        write_image(tmp_path / 'images' / name)
    (tmp_path / 'train.json').write_text(
        json.dumps({'images': [{'file_name': name} for name in names[:3]]})
    )
    prefix = dict(img='images/')
    images = OtherHalf(listed='train.json', data_root=str(tmp_path), data_prefix=prefix)
    assert [it['img_id'] for it in images] == ['a.jpg']
    assert half_of_labels(3) == {'train_dataloader.dataset.indices': [0, 0, 2, 2]}


def test_isotropic__the_principal_subspace_with_equal_variances():
    root = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = root @ root.t()
    plain, turned = PCAProjection(4, 12), IsotropicProjection(4, 12)
    for projection in (plain, turned):
        projection.fit(covariance)
    variances = (turned.basis.double().t() @ covariance @ turned.basis.double()).diagonal()
    torch.testing.assert_close(variances, variances.mean().expand(4), rtol=1e-5, atol=0)
    spans = [it.basis @ it.basis.t() for it in (plain, turned)]
    torch.testing.assert_close(*spans, rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match='d = 3 is no power of 2'):
        IsotropicProjection(3, 12).fit(covariance)


def test_head_projection__is_what_the_first_convolutions_read(tmp_path):
    first = 'bbox_head.multi_level_{}_convs.1.0.{}'
    state = {}
    for branch, weight in (('cls', [[1.0, 0, 0]]), ('reg', [[0, 0, 2.0]])):
        names = ('depthwise_conv.conv.weight', 'depthwise_conv.bn.weight')
        state[first.format(branch, names[0])] = torch.ones(3, 1, 3, 3)
        state[first.format(branch, names[1])] = torch.ones(3)
        state[first.format(branch, 'depthwise_conv.bn.running_var')] = torch.ones(3)
        state[first.format(branch, 'pointwise_conv.conv.weight')] = torch.tensor(weight)[
            ..., None, None
        ]
    torch.save({'state_dict': state}, tmp_path / 'teacher.pth')
    projection = HeadProjection(1, 3, 1, str(tmp_path / 'teacher.pth'))
    projection.fit(torch.diag(torch.tensor([1.0, 100, 2])))  # the second channel is not read
    torch.testing.assert_close(projection.basis.abs(), torch.tensor([[0.0], [0], [1]]))
