"""``image_scale``: the student gets the images of the data pipeline smaller than its teacher."""

import copy

import numpy as np
import pytest
import torch
from cached_runs import make_cache
from command_lines import one_line
from detectors import random_batch
from mmdet.registry import MODELS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config
from mmengine.structures import PixelData
from runs import call_tool, distilled, fcos, load, run_config, trained_losses
from torch import nn
from unlabelled import teacher_of, write_images

from rdimkd_det import ConfigError, RdimKDDistiller
from rdimkd_det.datasets.scaling import enlarge_training, enlarged
from rdimkd_det.distiller.image_scale import ImageShrinker, scaled_boxes, shrunk

RANDOM = dict(type='RandomProjection', dim=4)
PAIRS = [(8, 8), (16, 16)]  # strides 16 and 32 of the teacher's images


def build(files, scale: int = 2, **options) -> nn.Module:
    torch.manual_seed(0)
    teacher = {**teacher_of(files), 'image_scale': scale, **options}
    model = MODELS.build(distilled(fcos(norm_eval=True), teacher, projection=RANDOM)).train()
    model.distill.prepare(Config(dict()))
    return model


# Images and coordinates


@pytest.mark.parametrize('scale', [2, 3])
def test_shrunk__a_ramp_keeps_its_place(scale):
    """Position x of the student is the centre of its pixels in the large image."""
    rows, columns = torch.arange(13.0)[:, None], torch.arange(20.0)
    found = shrunk(torch.stack([rows + 0 * columns, columns + 0 * rows]), scale)
    height, width = -(-13 // scale), -(-20 // scale)
    assert found.shape == (2, height, width)
    centres = (torch.arange(20.0 // scale) * scale + (scale - 1) / 2)[1:-1]
    torch.testing.assert_close(found[1, 2, 1 : len(centres) + 1], centres)
    torch.testing.assert_close(found[0, 1:3, 3], centres[:2])


def test_shrunk__has_no_alias():
    stripes = (torch.arange(24) % 2).float().expand(3, 16, 24) * 255
    assert (shrunk(stripes, 2)[:, :, 1:-1] - 127.5).abs().max() < 1


def samples_of(*sizes, **metainfo) -> dict:
    """Return a batch of an FCOS's preprocessor, which pads to multiples of 32."""
    batch = random_batch(size=list(sizes), num_classes=3)
    for sample in batch['data_samples']:
        sample.set_metainfo({'scale_factor': (1.5, 2.0), **metainfo})
    return MODELS.build(fcos().data_preprocessor)(batch, True)


def test_batch__odd_sizes_and_padding():
    data = samples_of((63, 101), (96, 80))
    before = copy.deepcopy(data)
    preprocessor = MODELS.build(dict(fcos().data_preprocessor, pad_value=3))
    inputs, samples = ImageShrinker(2, preprocessor)(data['inputs'], data['data_samples'])
    assert inputs.shape == (2, 3, 64, 64)  # of 48 x 64, padded to multiples of 32 again
    assert [it.img_shape for it in samples] == [(32, 51), (48, 40)]
    assert {it.batch_input_shape for it in samples} == {(64, 64)}
    assert [it.pad_shape for it in samples] == [(32, 64), (64, 64)]
    assert samples[0].scale_factor == (0.75, 1.0) and samples[0].ori_shape == (63, 101)
    for image, sample in zip(inputs, samples):
        height, width = sample.img_shape
        assert (image[:, height:] == 3).all() and (image[:, :, width:] == 3).all()
        assert (image[:, :height, :width] != 3).all()
    for sample, large in zip(samples, before['data_samples']):
        torch.testing.assert_close(sample.gt_instances.bboxes, large.gt_instances.bboxes / 2)
        assert torch.equal(sample.gt_instances.labels, large.gt_instances.labels)
    # The padding of the large batch does not show at the edges of the small images.
    alone = samples_of((63, 101))
    of_one, _ = ImageShrinker(2, preprocessor)(alone['inputs'], alone['data_samples'])
    torch.testing.assert_close(of_one[0, :, :32, :51], inputs[0, :, :32, :51])
    assert torch.equal(data['inputs'], before['inputs'])  # the teacher's
    for sample, large in zip(data['data_samples'], before['data_samples']):
        assert sample.metainfo == large.metainfo
        assert torch.equal(sample.gt_instances.bboxes, large.gt_instances.bboxes)


@pytest.mark.parametrize('padded', [False, True])
def test_masks__of_both_kinds(padded):
    data = samples_of((63, 101))
    bitmap = np.zeros((2, 63, 101), np.uint8)
    bitmap[:, 20:40, 60:100] = 1
    square = np.array([60.0, 20, 100, 20, 100, 40, 60, 40])
    masks = BitmapMasks(bitmap, 63, 101), PolygonMasks([[square], [square]], 63, 101)
    for each in masks:
        sample = data['data_samples'][0]
        sample.gt_instances.masks = each.pad((64, 128)) if padded else each
        shrink = ImageShrinker(2, MODELS.build(fcos().data_preprocessor))
        _, (small,) = shrink(data['inputs'], data['data_samples'])
        found = small.gt_instances.masks
        size = (32, 64) if padded else (32, 51)
        assert (found.height, found.width) == size
        assert found.to_ndarray()[0, 10:20, 30:50].all()
        assert found.to_ndarray()[0].sum() == 200


def test_segmentation__is_padded_with_what_is_ignored():
    data = samples_of((63, 101))
    labels = torch.arange(63)[:, None].expand(63, 101)[None].clone()
    data['data_samples'][0].gt_sem_seg = PixelData(sem_seg=labels)
    shrink = ImageShrinker(2, MODELS.build(fcos().data_preprocessor))
    _, (small,) = shrink(data['inputs'], data['data_samples'])
    found = small.gt_sem_seg.sem_seg
    assert found.shape == (1, 32, 51)
    assert found[0, :, 0].tolist() == [*range(1, 63, 2), 255]


def test_boxes__rotated_ones_keep_their_angle():
    assert scaled_boxes(torch.tensor([[8.0, 4, 6, 2, 0.5]]), 0.5).tolist() == [[4, 2, 3, 1, 0.5]]
    corners = torch.tensor([[8.0, 4, 16, 12]])
    boxes = HorizontalBoxes(corners.clone())
    assert scaled_boxes(boxes, 0.5).tensor.tolist() == [[4, 2, 8, 6]]
    assert torch.equal(boxes.tensor, corners)


# Losses


def test_loss__student_small_teacher_large(files):
    model, data = build(files), samples_of((63, 101), (96, 80))
    inputs, samples = model.distill.shrink(**data)
    seen = []
    network = model.distill.teacher._network
    hook = network.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    found = model(**copy.deepcopy(data), mode='loss')
    hook.remove()
    assert seen == [(2, 3, 96, 128)]
    own = super(RdimKDDistiller, model).loss(inputs, copy.deepcopy(samples))
    assert all(torch.equal(found[name], value) for name, value in own.items())
    pairs = model.distill.level_pairs['neck']
    assert [(s.stride, t.stride) for s, t in pairs] == PAIRS
    names = [name for name in found if name.startswith('loss_rdimkd')]
    assert names == ['loss_rdimkd_neck_s8', 'loss_rdimkd_neck_s16']
    assert all(0 < found[name] < 4.1 for name in names)


def test_compared__maps_of_both_cover_the_images_and_no_padding(files):
    model, data = build(files), samples_of((63, 101), (96, 80))
    feats = model.distill.teacher_feats(**data)
    inputs, samples = model.distill.shrink(**data)
    outputs = {'neck': model.extract_feat(inputs)}
    (compared,) = model.distill.compared(outputs, feats, [it.img_shape for it in samples])
    shapes = [(tuple(s.shape[2:]), tuple(t.shape[2:])) for s, t in zip(*compared[2:4])]
    assert shapes == [((6, 8), (6, 8)), ((3, 4), (3, 4))]  # of 48 x 64 pixels
    assert [len(it) for it in compared.positions] == [4 * 7 + 6 * 5, 2 * 4 + 3 * 3]


def test_off__the_student_stays_small(files):
    model, data = build(files), samples_of((63, 101))
    model.distill.set_factor(0.0)
    inputs, samples = model.distill.shrink(**data)
    found = model(**copy.deepcopy(data), mode='loss')
    own = super(RdimKDDistiller, model).loss(inputs, samples)
    assert all(torch.equal(found[name], value) for name, value in own.items())


def test_unlabelled__both_at_once(files):
    model, data = build(files), samples_of((63, 101), (96, 80))
    data['data_samples'][0].set_metainfo({'labelled': False})
    found = model(**copy.deepcopy(data), mode='loss')
    inputs, samples = model.distill.shrink(**data)
    own = super(RdimKDDistiller, model).loss(inputs[1:], samples[1:])
    for name, value in own.items():
        torch.testing.assert_close(found[name], value)


def test_half_precision__on_a_cpu(files):
    model, data = build(files), samples_of((63, 101))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = model(**data, mode='loss')
    assert all(value.isfinite() for value in found.values() if isinstance(value, torch.Tensor))


# Several teachers, and mistakes


def several(files, *scales) -> nn.Module:
    teachers = [{**teacher_of(files), **({'image_scale': it} if it else {})} for it in scales]
    model = MODELS.build(distilled(fcos(norm_eval=True), teachers, projection=RANDOM)).train()
    for part in model.distill.per_teacher:
        part.prepare(Config(dict()))
    return model


def test_several_teachers__one_sees_what_the_student_sees(files):
    model, data = several(files, 2, None), samples_of((63, 101))
    large, small = model.distill.per_teacher
    assert [len(part.level_pairs['neck']) for part in (large, small)] == [2, 3]
    inputs, samples = model.distill.shrink(**data)
    alone = small.teacher(inputs, samples)['neck']
    found = small.teacher_feats(**data)['neck']
    assert all(torch.equal(a, b) for a, b in zip(found, alone))
    assert large.teacher_feats(**data)['neck'][0].shape[2:] == (4, 8)
    assert [part.pipeline_scale for part in (large, small)] == [2, 2]
    losses = model(**data, mode='loss')
    assert len([name for name in losses if 'rdimkd' in name]) == 5


@pytest.mark.parametrize(
    ('scale', 'message'),
    [
        (1.5, 'teacher: image_scale must be a whole number of 1 or more, .* got 1.5'),
        (0, 'teacher: image_scale must be .* got 0'),
        (True, 'teacher: image_scale must be .* got True'),
        (64, 'no level has a common stride: the student has strides'),
    ],
)
def test_mistakes(files, scale, message):
    with pytest.raises(ConfigError, match=message):
        build(files, scale)


def test_mistakes__options_and_several_scales(files):
    with pytest.raises(ConfigError, match=r"no option 'image_scal'; did you mean 'image_scale'\?"):
        build(files, image_scal=2)
    with pytest.raises(ConfigError, match=r'have image_scale \[2, 4\], and the student gets'):
        several(files, 2, 4)
    fast = {'bboxes_labels': torch.zeros(0, 6), 'img_metas': [], 'masks': torch.zeros(0, 32, 32)}
    with pytest.raises(ConfigError, match='of yolov5_collate, which also has masks; train without'):
        build(files).distill.shrink(torch.zeros(1, 3, 32, 32), fast)


# Larger training images


def test_enlarged__transforms_that_set_a_size():
    pipeline = [
        dict(type='Resize', scale=(96, 64), keep_ratio=True),
        dict(type='RandomChoiceResize', scales=[(96, 64), (80, 48)]),
        dict(type='RandomCrop', crop_size=(32, 40)),
        dict(type='RandomCrop', crop_type='relative_range', crop_size=(0.5, 0.5)),
        dict(type='Mosaic'),
        dict(type='RandomFlip', prob=0.5),
    ]
    pipeline.append(dict(type='RandomChoice', transforms=[pipeline[:1], pipeline[2:3]]))
    kept = copy.deepcopy(pipeline)
    found = enlarged(pipeline, 2)
    assert pipeline == kept
    assert found[0]['scale'] == (192, 128) and found[1]['scales'] == [(192, 128), (160, 96)]
    assert found[2]['crop_size'] == (64, 80) and found[3] == kept[3]
    assert found[4]['img_scale'] == (1280, 1280) and found[5] == kept[5]
    assert found[6]['transforms'] == [found[:1], found[2:3]]


def test_enlarge_training__what_it_cannot_scale(files, tmp_path):
    cfg = run_config(files / 'data', tmp_path, distilled(fcos(), teacher_of(files)))
    resized = copy.deepcopy(cfg)
    cfg.train_dataloader.dataset.pipeline.pop(1)
    with pytest.raises(ConfigError, match='has no transform that sets the size of images'):
        enlarge_training(cfg, 2)
    augment = dict(type='BatchSyncRandomResize', random_size_range=(64, 128))
    resized.model.student.data_preprocessor.batch_augments = [augment]
    with pytest.raises(ConfigError, match='batch_augments of the student has BatchSyncRandomRes'):
        enlarge_training(resized, 2)


# Trainings


@pytest.fixture
def distil(files, tmp_path):
    config = tmp_path / 'student.py'
    run_config(files / 'data', tmp_path / 'run', fcos(), max_epochs=1).dump(config)
    options = ('--dim', 4, '--teacher-scale', 2)

    def distil(*more) -> None:
        call_tool('distill.py', config, *teacher_of(files).values(), *options, *more)

    return distil


def test_tool__says_what_it_changed_and_trains(files, distil, tmp_path, capsys):
    distil('--unlabelled', write_images(tmp_path / 'images'))
    out = capsys.readouterr().out
    assert 'training images are 2 times as large, for the teacher (Resize.scale' in out
    assert '(80, 64) -> (160, 128)); the student gets them shrunk by 2' in out
    written = Config.fromfile(tmp_path / 'run/student.py')
    labelled, unlabelled = written.train_dataloader.dataset.datasets
    assert labelled.pipeline[1].scale == unlabelled.pipeline[1].scale == (160, 128)
    assert written.val_dataloader.dataset.pipeline[1].scale == (80, 64)
    assert written.model.teacher.image_scale == 2
    checkpoint = load(tmp_path / 'run/epoch_1.pth')
    assert checkpoint['meta']['distillation']['image_scale of the teacher'] == 2
    image = files / 'data/images/0.png'
    config, out = tmp_path / 'run/student.py', tmp_path / 'maps.png'
    call_tool('visualize.py', config, tmp_path / 'run/epoch_1.pth', image, '--out', out)
    assert out.is_file()
    with pytest.raises(SystemExit, match='2'):
        options = ('model.teacher.image_scale=1', 'train_cfg.max_epochs=2')
        call_tool('train.py', config, '--resume', '--cfg-options', *options)
    line = one_line('train.py', capsys.readouterr().err.splitlines()[-1])
    assert 'Its image_scale of the teacher was 2, here it is 1' in line


def test_save_config__is_the_same_training(distil, tmp_path):
    distil('--save-config', tmp_path / 'mine.py')
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert cfg.model.teacher.image_scale == 2
    assert cfg.train_dataloader.dataset.pipeline[1].scale == (160, 128)


def test_cache__of_the_large_images(files, distil, tmp_path):
    distil('--save-config', tmp_path / 'mine.py', '--loss-weight', 1)
    losses = []
    for name in ('live', 'cached'):
        cfg = Config.fromfile(tmp_path / 'mine.py')
        cfg.work_dir = str(tmp_path / name)
        if name == 'cached':
            cfg.model.teacher.cache = str(tmp_path / 'cache')
            make_cache(cfg)
        cfg.dump(tmp_path / f'{name}.py')
        call_tool('train.py', tmp_path / f'{name}.py')
        losses.append(trained_losses(cfg.work_dir))
    for live, cached in zip(*losses):
        assert cached == pytest.approx(live, rel=0.05)
