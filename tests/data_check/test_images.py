"""Image files that are missing, or not what the annotations and the network expect."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmdet.registry import TRANSFORMS
from PIL import Image


def loading(data, **options):
    for split in ('train', 'val', 'test'):
        data.cfg[f'{split}_dataloader'].dataset.pipeline[0].update(options)


def as_jpeg(data, orientation=1, where=lambda n: True, split='train', size=(80, 64), mode='RGB'):
    """Replace images by JPEG files with an EXIF orientation, or by PNG files of another mode."""
    exif = Image.Exif()
    exif[0x0112] = orientation

    def change(content):
        for n, entry in enumerate(content['images']):
            if not where(n):
                continue
            entry['file_name'] = f'{n}_{split}.{"jpg" if mode == "RGB" else "png"}'
            image = Image.new('RGB', size, (9, 90, 200)).convert(mode)
            image.save(data.root / 'images' / entry['file_name'], exif=exif.tobytes())

    data.change(split, change)


def test_files__one_of_them_is_missing(data):
    path = data.root / 'images' / '3.png'
    path.rename(path.with_suffix('.away'))
    line = data.error('train')
    assert line == (
        f'train data: 1 of the 12 images of {data.path("train")} is missing, e.g. {path}; put '
        f'them there, or remove their entries from the annotations.'
    )
    (data.root / 'images/unseen_3.png').unlink()
    assert data.error('val').startswith('val data: 1 of the 12 images of')
    path.write_bytes(b'')
    assert f'is an empty file, e.g. {path}' in data.error('train')


@pytest.mark.parametrize('name', ['3.PNG', '3.jpg', 'train2017/3.png', '3'])
def test_files__named_otherwise(data, name):
    data.change('train', lambda content: content['images'][3].update(file_name=name))
    alike = f"write file_name as the file is named there, e.g. '{data.root}/images/3.png'"
    assert data.error('train').endswith(f'{alike}.') == (name != 'train2017/3.png')
    data.change('train', lambda content: content.update(images=content['images'][3:4]))
    assert f'; {alike}, or set data_root and' in data.error('train')


def test_files__a_folder_is_no_image(data):
    (data.root / 'images/3.png').unlink()
    (data.root / 'images/3.png').mkdir()
    assert f'is missing, e.g. {data.root}/images/3.png; put' in data.error('train')


def test_files__none_is_there(data):
    for prefix in ('pictures/', '', '/nowhere/'):
        data.cfg.train_dataloader.dataset.data_prefix = dict(img=prefix)
        line = data.error('train')
        assert f'none of the 12 images of {data.path("train")} is there, e.g. ' in line
        assert line.endswith(
            f'; set data_root and data_prefix of train_dataloader.dataset to the folder of the '
            f'images, {data.root}/images.'
        )


def test_files__below_wrappers(data):
    inner = data.cfg.train_dataloader.dataset
    inner.data_prefix = dict(img='pictures/')
    for wrapper in (
        dict(type='RepeatDataset', times=2, dataset=inner),
        dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=inner),
        dict(type='MultiImageMixDataset', dataset=inner, pipeline=[]),
        dict(type='ConcatDataset', datasets=[inner]),
    ):
        data.cfg.train_dataloader.dataset = wrapper
        assert 'none of the 12 images' in data.error('train')


def test_files__that_the_filter_leaves_out_need_not_be_there(data):
    (data.root / 'images/3.png').unlink()
    data.change('train', lambda it: it.update(annotations=[
        entry for entry in it['annotations'] if entry['image_id'] != 3]))  # fmt: skip
    assert data.look('train') != []
    data.cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True)
    assert data.look('train') == []


def test_files__elsewhere_are_not_looked_for(data):
    data.cfg.train_dataloader.dataset.data_prefix = dict(img='pictures/')
    loading(data, backend_args=dict(backend='petrel'))
    assert data.look('train') == []


def test_files__named_by_several_entries(data):
    data.change(
        'train', lambda content: [it.update(file_name='0.png') for it in content['images'][:3]]
    )
    found = data.only('train')
    assert found.text.startswith(f'12 images of {data.path("train")} are 10 files, e.g. ')
    (data.root / 'images/11.png').unlink()
    (data.root / 'images/11.png').symlink_to('10.png')
    assert f' are 9 files, e.g. {data.root}/images/0.png several' in data.only('train').text


def test_overlap__images_of_training_and_evaluation(data):
    images, val = data.root / 'images', data.path('val')
    shutil.copy(images / '3.png', images / 'unseen_7.png')
    assert data.only().text == (
        f'1 of 12 images of {val} are trained on, e.g. {images}/unseen_7.png, which is a copy of '
        f'{images}/3.png: AP shows what was memorised'
    )
    assert data.look(thorough=False) == []
    (images / 'unseen_8.png').unlink()
    (images / 'unseen_8.png').symlink_to('5.png')
    data.change('val', lambda content: content['images'][2].update(file_name='2.png'))
    assert data.only().text.startswith(f'3 of 12 images of {val} are trained on, e.g. {images}/2.p')
    assert data.only(thorough=False).text.startswith('2 of 12 images')
    data.cfg.val_dataloader.dataset = data.cfg.train_dataloader.dataset  # on purpose
    assert not [it for it in data.look() if 'trained on' in it.text]


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
@pytest.mark.parametrize('color', ['color', 'unchanged', 'color_ignore_orientation', 'grayscale'])
def test_sizes__are_those_that_are_loaded(data, orientation, color):
    """As many images are told as MMDetection loads in another size."""
    as_jpeg(data, orientation, where=lambda n: n % 2)
    loading(data, color_type=color)
    found = [it for it in data.look('train') if 'another size' in it.text]
    loaded = LoadImageFromFile(color_type=color)(
        dict(img_path=str(data.root / 'images/1_train.jpg'))
    )
    differs = loaded['img'].shape[:2] != (64, 80)
    assert differs == (orientation in (6, 8) and color in ('color', 'grayscale'))
    assert bool(found) == differs
    if differs:
        assert found[0].text.startswith(
            f'6 of 12 images of {data.path("train")} have another size than in the file: '
            f'{data.root}/images/1_train.jpg is loaded as 64x80 (width x height) and annotated as '
            f'80x64; 6 of them have the EXIF orientation {orientation}, by which loading turns them'
        )


def test_sizes__right_for_turned_images(data):
    as_jpeg(data, 6, size=(64, 80))
    assert data.look('train') == []


def test_sizes__swapped_or_others(data):
    def swap(content):
        for it in content['images']:
            it['width'], it['height'] = it['height'], it['width']

    data.change('train', swap)
    (text,) = [it.text for it in data.look('train') if it.topic == 'Images']
    assert '12 of 12 images' in text and text.endswith('annotated as 64x80, swapped')
    data.change('train', lambda content: [it.update(width=800) for it in content['images']])
    assert (
        'is loaded as 80x64 (width x height) and annotated as 800x80' in data.look('train')[0].text
    )


def test_sizes__of_a_sample_at_a_start(data, monkeypatch):
    monkeypatch.setattr('rdimkd_det.data_check.pixels.NUM_SAMPLES', 4)
    as_jpeg(data, 6)
    assert '4 of 4 images looked at of' in data.only('train', thorough=False).text


@pytest.mark.parametrize('mode, channels', [('L', 1), ('RGBA', 4), ('P', 3), ('LA', 4), ('RGB', 3)])
def test_channels__are_those_that_are_loaded(data, mode, channels):
    as_jpeg(data, mode=mode, where=lambda n: n == 1)
    name = '1_train.jpg' if mode == 'RGB' else '1_train.png'
    path = str(data.root / 'images' / name)
    image = LoadImageFromFile(color_type='unchanged')(dict(img_path=path))['img']
    assert image.reshape(64, 80, -1).shape[2] == channels
    assert data.look('train') == []  # color_type='color' makes three of them
    loading(data, color_type='unchanged')
    found = data.look('train')
    assert len(found) == (channels != 3)
    if found:
        assert found[0].text.startswith(
            f'1 of 12 images of {data.path("train")} have {channels} channels ({mode}) as '
            f"color_type='unchanged' loads them, and the network takes 3, e.g. {path}"
        )
        assert found[0].remedy == "set color_type='color' in LoadImageFromFile"
        assert found[0].severity == ('error' if channels < 3 else 'warning')  # which cannot load


@pytest.mark.parametrize('name', ['in_channels', 'input_channels'])
def test_channels__of_a_network_of_one_channel(data, name):
    """MMYOLO's backbones have another name for it."""
    model = data.cfg.model
    model.data_preprocessor.update(mean=[100.0], std=[50.0], bgr_to_rgb=False)
    model.backbone[name] = 1
    loading(data, color_type='grayscale')
    assert data.look('train') == []
    loading(data, color_type='color')
    assert 'have 3 channels (RGB)' in data.only('train').text


@TRANSFORMS.register_module()
class AddThermal(BaseTransform):
    """A user's own: the channels of the file are not those of the network."""

    def transform(self, results):
        return results


def test_channels__that_a_transform_of_the_users_adds(data):
    data.cfg.model.data_preprocessor.update(mean=[100.0] * 4, std=[50.0] * 4, bgr_to_rgb=False)
    data.cfg.model.backbone.in_channels = 4
    assert 'have 3 channels (RGB)' in data.only('train').text
    data.cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='AddThermal'))
    assert data.look('train') == []


def test_depth__of_16_bits(data):
    deep = np.full((64, 80, 3), 1000, np.uint16)
    cv2.imwrite(str(data.root / 'images/2.png'), deep[:, :, 0])
    text = data.only('train').text
    assert text.startswith('1 of 12 images of') and 'have 16 bits per channel' in text


def test_headers__of_a_damaged_image_are_left_to_its_loading(data):
    (data.root / 'images/2.png').write_bytes(b'no image')
    assert data.look('train') == []


def test_root__without_a_folder_of_images(data):
    shutil.move(data.root / 'images', Path(data.root).parent / 'away')
    assert data.error('train').endswith('to the folder of the images.')


def test_files__below_folders_of_their_own(data):
    (data.root / 'images').rename(data.root / 'sub')
    (data.root / 'images').mkdir()
    (data.root / 'sub').rename(data.root / 'images/sub')
    data.change('train', lambda it: [
        entry.update(file_name=f'sub/{entry["file_name"]}') for entry in it['images']])  # fmt: skip
    assert data.look('train') == []
    data.cfg.train_dataloader.dataset.data_prefix = dict(img='')
    assert data.error('train').endswith(f'the folder of the images, {data.root}/images.')


def test_files__names_from_windows(data):
    data.change('train', lambda it: [
        entry.update(file_name=f'images\\{entry["file_name"]}') for entry in it['images']
    ])  # fmt: skip
    assert data.error('train').endswith(
        '; write file_name with / in place of \\ in the annotations.'
    )
