"""Training from a cache of the teacher's maps equals training with the live teacher."""

import copy
import gc
import pickle
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from cached_runs import FLIP, cached_run, make_cache, write_files
from mmdet.datasets import transforms
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import Runner
from runs import assert_equal, fcos, hidden, load, train, trained_losses

from rdimkd_det import ConfigError
from rdimkd_det.files.configs import without_cache
from rdimkd_det.teacher import FeatureExtractor
from rdimkd_det.teacher.cache.images import image_pipeline
from rdimkd_det.teacher.cache.reading import place
from rdimkd_det.teacher.cache.store import TeacherCache

HALF = 2**-11  # the relative error of rounding to half precision


@pytest.fixture(scope='module')
def same_size(tmp_path_factory):
    """Folder with data of one image size, the teacher, and its cache."""
    folder = write_files(tmp_path_factory.mktemp('same_size'))
    make_cache(cached_run(folder))
    return folder


@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
    """Folder with data of two image sizes, the teacher, and its cache."""
    folder = write_files(tmp_path_factory.mktemp('mixed'), mixed=True)
    make_cache(cached_run(folder))
    return folder


def built_pair(folder: Path, **loss) -> tuple:
    """Build two students with equal weights, with the cached and with the live teacher."""
    torch.manual_seed(0)
    cached = MODELS.build(cached_run(folder, **loss).model).train()
    live = MODELS.build(cached_run(folder, cache=False, **loss).model).train()
    live.load_state_dict(cached.state_dict())
    live.distill.load_state_dict(cached.distill.state_dict())  # its bases as well
    return cached, live


def losses_and_gradients(model, batch: dict) -> tuple[dict, dict]:
    model.zero_grad()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    losses = model.loss(data['inputs'], data['data_samples'])
    losses = {name: value for name, value in losses.items() if 'rdimkd' in name}
    sum(losses.values()).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, grads


def loader_of(folder: Path):
    config = cached_run(folder)
    torch.manual_seed(3)
    np.random.seed(3)
    return Runner.build_dataloader(config.train_dataloader, seed=3)


# The same losses


@pytest.mark.smoke
@pytest.mark.parametrize('normalize', [None, 'teacher', 'standardize'])
def test_epoch__losses_and_gradients_of_the_live_teacher(same_size, normalize):
    cached, live = built_pair(same_size, normalize=normalize)
    flips, images = set(), 0
    for batch in loader_of(same_size):
        images += len(batch['inputs'])
        flips |= {sample.flip for sample in batch['data_samples']}
        found, found_grads = losses_and_gradients(cached, batch)
        expected, expected_grads = losses_and_gradients(live, batch)
        assert list(found) == [f'loss_rdimkd_neck_s{stride}' for stride in (8, 16, 32)]
        torch.testing.assert_close(found, expected, rtol=2 * HALF, atol=0)
        assert found_grads.keys() == expected_grads.keys()
        largest = max(grad.norm() for grad in expected_grads.values())
        for name, grad in expected_grads.items():
            assert (found_grads[name] - grad).norm() < 4 * HALF * grad.norm() + 1e-5 * largest
    assert images == 8 and flips == {True, False}
    if normalize == 'teacher':
        scales = [model.distill.losses['neck'].teacher_variance for model in (cached, live)]
        torch.testing.assert_close(*scales, rtol=2 * HALF, atol=0)


def test_epoch__without_an_adapter_and_resized(tmp_path):
    """The plain loss has a shortcut without an adapter; resize='teacher' resizes coordinates."""
    folder = write_files(tmp_path)
    options = dict(normalize=None, resize='teacher')
    config = cached_run(folder, **options)
    config.model.student.neck.out_channels = config.model.student.bbox_head.in_channels = 24
    make_cache(config)
    live_config = copy.deepcopy(config.model)
    del live_config.teacher['cache']
    cached, live = MODELS.build(config.model).train(), MODELS.build(live_config).train()
    live.load_state_dict(cached.state_dict())
    live.distill.load_state_dict(cached.distill.state_dict())
    for batch in loader_of(folder):
        found, _ = losses_and_gradients(cached, batch)
        expected, _ = losses_and_gradients(live, batch)
        torch.testing.assert_close(found, expected, rtol=2 * HALF, atol=0)


def test_mixed_sizes__the_map_of_each_image_alone_then_the_response_to_padding(mixed):
    cached, live = built_pair(mixed)
    batch = next(iter(loader_of(mixed)))
    assert {tuple(image.shape[1:]) for image in batch['inputs']} == {(64, 80), (80, 60)}
    data = cached.data_preprocessor(copy.deepcopy(batch), True)
    found = cached.distill.teacher_feats(data['inputs'], data['data_samples'])['neck']
    assert [found[level].shape[2:] for level in range(3)] == [(12, 12), (6, 6), (3, 3)]
    tensors = TeacherCache(mixed / 'cache').tensors
    for number in range(4):
        alone = {key: [value[number]] for key, value in copy.deepcopy(batch).items()}
        alone = live.data_preprocessor(alone, True)
        maps = live.distill.teacher_feats(alone['inputs'], alone['data_samples'])['neck']
        for level, (of_image, of_level) in enumerate(zip(maps, tensors)):
            height, width = of_image.shape[2:]
            assert {height, width} == set([(8, 12), (4, 6), (2, 3)][level])
            coordinates = of_level.basis.t() @ of_image[0].flatten(1)
            expected = of_level.padding[:, None, None].repeat(1, *found[level].shape[2:])
            expected[:, :height, :width] = coordinates.unflatten(1, (height, width))
            torch.testing.assert_close(found[level][number], expected, rtol=HALF, atol=1e-5)


def test_mixed_sizes__losses_close_to_the_live_teachers(mixed):
    cached, live = built_pair(mixed, normalize=None)
    for batch in loader_of(mixed):
        found, expected = (losses_and_gradients(model, batch)[0] for model in (cached, live))
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0)


def test_padding__is_what_the_live_teacher_gives_far_from_an_image(mixed):
    _, live = built_pair(mixed)
    inputs = torch.full((1, 3, 512, 512), float(live.data_preprocessor.pad_value))
    inputs[..., :32, :32] = torch.randn(1, 3, 32, 32)
    sample = DetDataSample(metainfo={'img_shape': (32, 32)})
    maps = live.distill.teacher_feats(inputs, [sample])['neck']
    for of_level, of_image in zip(TeacherCache(mixed / 'cache').tensors, maps):
        middle = of_image[0, :, of_image.shape[2] // 2, of_image.shape[3] // 2]
        expected = middle @ of_level.basis
        assert expected.norm() > 0.01
        torch.testing.assert_close(of_level.padding, expected, rtol=1e-3, atol=1e-4)


def test_place__pads_below_and_to_the_right():
    target = np.full((2, 2, 3), np.nan, np.float16)
    place(np.full((2, 2, 1), 2, np.float16), target, np.float32([7, 8]))
    assert target.tolist() == [[[2, 7, 7], [2, 7, 7]], [[2, 8, 8], [2, 8, 8]]]
    place(np.ones((2, 1, 3), np.float16), target, np.float32([7, 8]))
    assert target.tolist() == [[[1, 1, 1], [7, 7, 7]], [[1, 1, 1], [8, 8, 8]]]


def test_reading__goes_on_beside_the_student(same_size):
    """Reading starts before the student's forward pass, and is awaited after it."""
    cached, _ = built_pair(same_size)
    data = cached.data_preprocessor(next(iter(loader_of(same_size))), True)
    student_is_done, read = threading.Event(), TeacherCache.read

    def read_late(self, *image):
        assert student_is_done.wait(60)
        return read(self, *image)

    cached.bbox_head.register_forward_hook(lambda *args: student_is_done.set())
    with mock.patch.object(TeacherCache, 'read', read_late):
        losses = cached.loss(data['inputs'], data['data_samples'])
    expected = cached.loss(data['inputs'], data['data_samples'])
    assert losses['loss_rdimkd_neck_s8'] == expected['loss_rdimkd_neck_s8'] > 0


# Training


@pytest.mark.smoke
def test_train__no_teacher_anywhere(same_size):
    """The teacher is neither built nor loaded; its files are hidden."""
    files = [str(same_size / 'teacher' / name) for name in ('teacher.py', 'teacher.pth')]
    config = cached_run(same_size, 'no_teacher')
    del config.model.teacher['config'], config.model.teacher['checkpoint']
    with (
        hidden(*files),
        mock.patch.object(FeatureExtractor, '__init__', side_effect=AssertionError('built')),
        mock.patch('rdimkd_det.hooks.fit_projections', side_effect=AssertionError('fitted')),
    ):
        runner = train(config)
    gc.collect()
    assert not any(isinstance(thing, FeatureExtractor) for thing in gc.get_objects())
    names = [name for name, _ in runner.model.named_parameters()]
    plain = [name for name, _ in MODELS.build(config.model.student).named_parameters()]
    adapters = [
        f'distill.losses.neck.adapters.{n}.{p}' for n in range(3) for p in ('weight', 'bias')
    ]
    assert names == plain + adapters
    lines = trained_losses(config.work_dir)
    assert len(lines) == 4 and all(0 < line['loss_rdimkd_neck_s8'] < 4 for line in lines)
    checkpoint = load(Path(config.work_dir) / 'epoch_2.pth')
    MODELS.build(config.model.student).load_state_dict(checkpoint['state_dict'], strict=True)
    tensors = TeacherCache(same_size / 'cache').tensors
    basis = checkpoint['distill']['losses.neck.projections.1.basis']
    assert torch.equal(basis, tensors[1].basis)


def test_train__equals_training_with_the_live_teacher(same_size):
    config = cached_run(same_size, 'from_cache')
    from_cache = train(config)
    live = cached_run(same_size, 'live', cache=False)

    def use_cached_bases(model, batches):
        model.distill.load_state_dict(from_start)

    from_start = MODELS.build(config.model).distill.state_dict()
    with mock.patch('rdimkd_det.hooks.fit_projections', use_cached_bases):
        train(live)
    for one, other in zip(trained_losses(config.work_dir), trained_losses(live.work_dir)):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == pytest.approx(other[name], rel=5e-3), name
    assert from_cache.model.distill.teacher.projected


def test_resume__equals_uninterrupted_run(same_size):
    def run(name, **options):
        config = cached_run(same_size, name, normalize='teacher')
        # mmengine does not keep the random state, from which the flips of the second epoch come.
        config.train_dataloader.dataset.pipeline[FLIP].prob = 0.0
        config.merge_from_dict(options)
        train(config)
        return Path(config.work_dir) / 'epoch_2.pth'

    whole = load(run('whole'))
    run('interrupted', **{'train_cfg.max_epochs': 1})
    resumed = load(run('interrupted', resume=True))
    assert_equal(whole['state_dict'], resumed['state_dict'])
    assert_equal(whole['distill'], resumed['distill'])


def test_resume__checkpoint_of_a_training_without_the_cache(same_size):
    live = cached_run(same_size, 'other_bases', cache=False)
    live.train_cfg.max_epochs = 1
    live.custom_hooks[0].calibration_images = 2
    train(live)
    config = cached_run(same_size, 'other_bases')
    config.resume = True
    with pytest.raises(ConfigError, match='neck_s8 already has another basis'):
        train(config)


def test_schedule__frees_the_index_at_its_end(same_size):
    config = cached_run(same_size, 'stopped')
    config.custom_hooks[0].schedule = dict(stop=1)
    assert not train(config).model.distill.teacher.built


def test_pickle__still_reads_the_cache(same_size):
    cached = MODELS.build(cached_run(same_size).model).train()
    batch = next(iter(loader_of(same_size)))
    expected = losses_and_gradients(cached, batch)[0]
    again = pickle.loads(pickle.dumps(cached))
    assert cached.distill.teacher.built and not again.distill.teacher.built
    torch.testing.assert_close(losses_and_gradients(again, batch)[0], expected, rtol=0, atol=0)


def test_build__without_the_cache_for_testing_only(same_size):
    config = cached_run(same_size, 'elsewhere')
    config.model.teacher.cache = str(same_size / 'nowhere')
    model = MODELS.build(config.model).eval()
    images = torch.rand(1, 3, 64, 96)
    assert model.predict(
        images,
        [
            DetDataSample(
                metainfo=dict(
                    img_shape=(64, 96),
                    ori_shape=(64, 96),
                    scale_factor=(1.0, 1.0),
                    batch_input_shape=(64, 96),
                )
            )
        ],
    )
    with pytest.raises(ConfigError, match=r'teacher cache .*nowhere is not there'):
        train(config)


def test_build__the_caches_basis_whatever_d_the_student_has_by_default(same_size, tmp_path):
    config = cached_run(same_size, projection=dict(type='RandomProjection'))
    config.work_dir, config.model.teacher.cache = str(tmp_path / 'run'), str(tmp_path / 'cache')
    make_cache(config)
    config.model.student = fcos(fpn_channels=24)
    loss = MODELS.build(config.model).distill.losses.neck
    assert [projection.basis.shape[1] for projection in loss.projections] == [4, 4, 4]


def test_without_cache__the_live_config_and_the_other_as_it_was(same_size):
    config = cached_run(same_size)
    config.model.teacher = [config.model.teacher, dict(config.model.teacher)]
    live = without_cache(config)
    assert [set(teacher) for teacher in live.model.teacher] == [{'config', 'checkpoint'}] * 2
    assert all('cache' in teacher for teacher in config.model.teacher)


def test_several_teachers__one_cached_one_live(same_size):
    config = cached_run(same_size, 'two')
    live = {k: v for k, v in config.model.teacher.items() if k != 'cache'}
    config.model.teacher = [config.model.teacher, live]
    model = train(config).model
    cached, live = (part.losses['neck'].projections[0].basis for part in model.distill.per_teacher)
    tensors = TeacherCache(same_size / 'cache').tensors
    assert torch.equal(cached, tensors[0].basis) and live.shape == (24, 8)


# Mistakes


def other_checkpoint(config, folder):
    path = folder / 'other/teacher.pth'
    path.parent.mkdir(exist_ok=True)
    weights = load(folder / 'teacher/teacher.pth')
    weights['state_dict']['backbone.conv1.weight'] += 1
    torch.save(weights, path)
    config.model.teacher.checkpoint = str(path)


def other_name(config, folder):
    config.model.teacher.checkpoint = '/far/away/another.pth'


def other_preprocessor(config, folder):
    teacher = Config.fromfile(folder / 'teacher/teacher.py')
    teacher.model.data_preprocessor.bgr_to_rgb = False
    teacher.dump(folder / 'bgr.py')
    config.model.teacher.config = str(folder / 'bgr.py')


def other_scale(config, folder):
    config.train_dataloader.dataset.pipeline[1].scale = (40, 32)


def other_projection(config, folder):
    config.model.losses.neck.projection.dim = 4


def other_strides(config, folder):
    config.model.teacher.cache = str(folder / 'fewer')


def other_tap(config, folder):
    config.model.losses.neck.teacher_module = 'backbone'


@pytest.mark.parametrize(
    'change, message',
    [
        (other_checkpoint, 'other weights: [0-9a-f]{64}; this config has [0-9a-f]{64}'),
        (other_name, 'other checkpoint: teacher.pth; this config has another.pth'),
        (other_preprocessor, "in data_preprocessor of the teacher's config: True; this .* False"),
        (other_scale, r'1.scale in transforms: \[80, 64\]; this config has \[40, 32\]'),
        (other_projection, "other dim in projection at 'neck': 8; this config has 4"),
        (other_tap, "other projection at 'backbone': None"),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_mismatch__one_line_names_the_difference(same_size, change, message):
    config = cached_run(same_size, 'mismatch')
    change(config, same_size)
    with pytest.raises(ConfigError, match=message) as error:
        train(config)
    assert '\n' not in str(error.value)


def test_match__equal_weights_of_another_name(same_size, tmp_path):
    config = cached_run(same_size, 'renamed')
    path = tmp_path / 'renamed.pth'
    path.write_bytes((same_size / 'teacher/teacher.pth').read_bytes())
    config.model.teacher.checkpoint = str(path)
    MODELS.build(config.model).distill.prepare(config)


def test_match__no_flips_in_training(same_size):
    config = cached_run(same_size, 'no_flips')
    config.train_dataloader.dataset.pipeline[FLIP].prob = 0.0
    MODELS.build(config.model).distill.prepare(config)


def test_image__not_in_the_cache(same_size):
    cached, _ = built_pair(same_size)
    batch = next(iter(loader_of(same_size)))
    batch['data_samples'][0].set_metainfo({'img_id': 99})
    with pytest.raises(ConfigError, match=r'image 99:\d.png.* of size \(64, 80\) is not in it'):
        losses_and_gradients(cached, batch)


def test_image__cached_in_another_size(same_size):
    cached, _ = built_pair(same_size)
    batch = next(iter(loader_of(same_size)))
    batch['data_samples'][0].set_metainfo({'img_shape': (64, 79)})
    with pytest.raises(ConfigError, match=r'size \(64, 79\) was cached as \(64, 80\)'):
        losses_and_gradients(cached, batch)


STEPS = {
    'RandomResize': dict(type='RandomResize', scale=[(80, 64), (40, 32)]),
    'RandomChoiceResize': dict(type='RandomChoiceResize', scales=[(80, 64)]),
    'RandomCrop': dict(type='RandomCrop', crop_size=(32, 32)),
    'PhotoMetricDistortion': dict(type='mmdet.PhotoMetricDistortion'),
    'Mosaic': dict(type='Mosaic'),
    'CopyPaste': dict(type='CopyPaste'),
    'RandomApply': dict(type='RandomApply', transforms=[dict(type='Resize', scale=(9, 9))]),
    'MyTransform': dict(type='MyTransform'),
}


@pytest.mark.parametrize('name', STEPS)
def test_pipeline__refused_with_the_transforms_name(same_size, name):
    config = cached_run(same_size)
    config.train_dataloader.dataset.pipeline.insert(2, STEPS[name])
    with pytest.raises(ConfigError, match=f'has {name}, .*take it out'):
        image_pipeline(config)


@pytest.mark.parametrize(
    'name, change',
    [
        (
            'RandomFlip',
            {'train_dataloader.dataset.pipeline.3.direction': ['horizontal', 'vertical']},
        ),
        ('RandomFlip', {'train_dataloader.dataset.pipeline.3.direction': 'vertical'}),
        (
            'PackDetInputs',
            {'train_dataloader.dataset.pipeline.4.meta_keys': ['img_id', 'img_path']},
        ),
        (
            'BatchSyncRandomResize',
            {
                'model.student.data_preprocessor.batch_augments': [
                    dict(type='BatchSyncRandomResize', random_size_range=(32, 64))
                ]
            },
        ),
        ('PipelineSwitchHook', {'custom_hooks': [dict(type='PipelineSwitchHook')]}),
        (
            'theirs.Preprocessor',
            {'model.student.data_preprocessor.type': 'theirs.Preprocessor'},
        ),
        ("default_scope='theirs'", {'default_scope': 'theirs'}),
        (
            'theirs.ConcatDataset',
            {'train_dataloader.dataset': dict(type='theirs.ConcatDataset', datasets=[])},
        ),
    ],
)
def test_pipeline__refused_with_the_name_of_the_culprit(same_size, name, change):
    config = cached_run(same_size)
    config.merge_from_dict(change, allow_list_keys=True)
    with pytest.raises(ConfigError, match=f'has {name}, '):
        image_pipeline(config)


@pytest.mark.parametrize('at_the_top', [True, False])
def test_pipeline__preprocessor_outside_of_the_student(same_size, at_the_top):
    config = cached_run(same_size)
    preprocessor = config.model.student.pop('data_preprocessor')
    pad = dict(type='mmdet.BatchFixedSizePad', size=(96, 96))
    place = config if at_the_top else config.model
    place.data_preprocessor = dict(preprocessor, batch_augments=[pad])
    assert image_pipeline(config)['batch_augments'] == [
        {'type': 'BatchFixedSizePad', 'size': [96, 96]}
    ]
    place.data_preprocessor.batch_augments.append(dict(type='BatchSyncRandomResize'))
    with pytest.raises(ConfigError, match='has BatchSyncRandomResize, '):
        image_pipeline(config)
    config.model.student.data_preprocessor = preprocessor  # it goes first
    assert image_pipeline(config)['batch_augments'] == []


class Resize:
    """A transform with the same name as MMDetection's."""


@pytest.mark.parametrize(
    'name, options',
    [
        ('theirs.Resize', dict(type='theirs.Resize')),
        ('theirs.Resize', dict(type='theirs.transforms.Resize')),
        ('theirs.Resize', dict(type='Resize', _scope_='theirs')),
        (f'{__name__}.Resize', dict(type=Resize)),
    ],
)
def test_pipeline__of_another_package_is_not_mmdetections(same_size, name, options):
    config = cached_run(same_size)
    config.train_dataloader.dataset.pipeline[1].update(options)
    with pytest.raises(ConfigError, match=f'has {name}, '):
        image_pipeline(config)


@pytest.mark.parametrize(
    'kind', ['mmdet.Resize', 'mmdet.datasets.transforms.Resize', 'mmcv.Resize', transforms.Resize]
)
def test_pipeline__with_the_hosts_scopes(same_size, kind):
    config = cached_run(same_size)
    plain = image_pipeline(config)
    config.train_dataloader.dataset.pipeline[1].type = kind
    assert image_pipeline(config) == plain


def test_pipeline__wrappers(same_size):
    config = cached_run(same_size)
    leaf = config.train_dataloader.dataset
    plain = image_pipeline(config)
    config.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[leaf, leaf])
    )
    assert image_pipeline(config) == plain
    config.train_dataloader.dataset = dict(type='MultiImageMixDataset', dataset=leaf, pipeline=[])
    with pytest.raises(ConfigError, match='has MultiImageMixDataset'):
        image_pipeline(config)


def test_pipeline__coco_as_mmdetection_ships_it(small_config):
    pipeline = image_pipeline(small_config('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'))
    assert pipeline == {
        'transforms': [
            {'type': 'LoadImageFromFile'},
            {'type': 'Resize', 'scale': [1333, 800], 'keep_ratio': True},
            {'type': 'RandomFlip'},
        ],
        'flip': True,
        'batch_augments': [],
    }
