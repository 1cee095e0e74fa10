"""``DistillHook`` in real trainings by mmengine's Runner, of two epochs on eight small images."""

import itertools
import random
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.registry import HOOKS, MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict
from runs import (
    assert_equal,
    distilled,
    fcos,
    hidden,
    load,
    run_config,
    train,
    trained_losses,
)

import rdimkd_det.hooks
from rdimkd_det import ConfigError, DistillHook
from rdimkd_det.distiller import distilled_student
from rdimkd_det.random_state import preserved_random_state

# Data augmentation, so that a run draws random numbers all the time.
FLIP = {'train_dataloader.dataset.pipeline.3.prob': 0.5}


@pytest.fixture(scope='module')
def teacher(files):
    return dict(
        config=str(files / 'teacher/teacher.py'), checkpoint=str(files / 'teacher/teacher.pth')
    )


@pytest.fixture
def config(files, teacher, tmp_path):
    """Make the config of a run in ``tmp_path / name``; the options are those of the loss."""

    def config(name='run', overrides=None, **loss):
        model = distilled(fcos(), teacher, **loss)
        return run_config(files / 'data', tmp_path / name, model, **(overrides or {}))

    return config


@pytest.fixture(scope='module')
def trained(files, teacher, tmp_path_factory):
    """Return work directory and runner of a finished run of two epochs; do not modify them."""
    work_dir = tmp_path_factory.mktemp('trained')
    config = run_config(files / 'data', work_dir, distilled(fcos(), teacher))
    config.dump(work_dir / 'distilled.py')
    plain = config.copy()
    plain.merge_from_dict(dict(custom_hooks=[]))
    plain.model = fcos()
    plain.dump(work_dir / 'plain.py')
    runner = train(config)
    return work_dir, runner


# Checkpoints


@pytest.mark.smoke
def test_checkpoint__is_a_students_with_distillation_beside(trained):
    work_dir, runner = trained
    checkpoint = load(work_dir / 'epoch_2.pth')
    plain = MODELS.build(fcos())
    assert list(checkpoint['state_dict']) == list(plain.state_dict())
    plain.load_state_dict(checkpoint['state_dict'], strict=True)
    load_state_dict(plain, checkpoint['state_dict'], strict=True)
    kept = checkpoint['distill']
    assert_equal(kept, runner.model.distill.state_dict())
    assert [tuple(kept[f'losses.neck.projections.{i}.basis'].shape) for i in range(3)] == [
        (24, 8)
    ] * 3
    assert not any('teacher.' in key or 'network' in key for key in kept)


def test_checkpoint__moved_weights_of_student_and_adapters(trained):
    first, last = (load(trained[0] / f'epoch_{epoch}.pth') for epoch in (1, 2))
    for part, name in (
        ('state_dict', 'backbone.conv1.weight'),
        ('distill', 'losses.neck.adapters.0.weight'),
    ):
        assert not torch.equal(first[part][name], last[part][name])
    name = 'losses.neck.projections.0.basis'
    assert torch.equal(first['distill'][name], last['distill'][name])


@pytest.mark.parametrize(
    'normalize',
    [
        pytest.param('standardize', marks=pytest.mark.smoke),
        pytest.param('teacher', marks=pytest.mark.slow),
    ],
)
def test_resume__equals_uninterrupted_run(config, trained, normalize):
    if normalize == 'standardize':
        whole = trained[0] / 'epoch_2.pth'
    else:
        whole = Path(train(config('whole', normalize=normalize)).work_dir) / 'epoch_2.pth'
    interrupted = config(normalize=normalize)
    interrupted.train_cfg.max_epochs = 1
    train(interrupted)
    first = load(Path(interrupted.work_dir) / 'epoch_1.pth')
    resumed = config(normalize=normalize, overrides=dict(resume=True))
    fit = rdimkd_det.hooks.fit_projections
    restored = {}

    def keep_state(self, runner):
        restored.update({k: v.clone() for k, v in runner.model.distill.state_dict().items()})

    runner = Runner.from_cfg(resumed)
    epoch_starts = mock.patch.object(DistillHook, 'before_train_epoch', keep_state)
    with epoch_starts, mock.patch.object(rdimkd_det.hooks, 'fit_projections', wraps=fit) as spy:
        runner.train()
    assert spy.call_count == 0
    assert_equal(restored, first['distill'])
    expected, found = load(whole), load(Path(resumed.work_dir) / 'epoch_2.pth')
    assert_equal(expected['state_dict'], found['state_dict'])
    assert_equal(expected['distill'], found['distill'])
    for one, other in zip(*(c['optimizer']['state'].values() for c in (expected, found))):
        assert torch.equal(one['momentum_buffer'], other['momentum_buffer'])


def test_resume__checkpoint_of_another_teacher(config):
    interrupted = config()
    interrupted.train_cfg.max_epochs = 1
    train(interrupted)
    other = config(overrides=dict(resume=True), tap='backbone')
    with pytest.raises(ConfigError, match='take the config of its run'):
        train(other)


def test_resume__of_a_plain_checkpoint_fits_and_warns(config, trained, tmp_path):
    checkpoint = load(trained[0] / 'epoch_1.pth')
    del checkpoint['distill'], checkpoint['optimizer']
    torch.save(checkpoint, tmp_path / 'plain.pth')
    resumed = config(overrides=dict(resume=True, load_from=str(tmp_path / 'plain.pth')))
    runner = train(resumed)
    assert runner.epoch == 2
    assert distilled_student(runner.model).distill.losses['neck'].fitted
    log = next(Path(resumed.work_dir).glob('*/*.log')).read_text()
    assert 'holds no distillation state' in log


def test_load_from__starts_distillation_anew(config, trained):
    given = load(trained[0] / 'epoch_2.pth')
    new = config(overrides=dict(load_from=str(trained[0] / 'epoch_2.pth')))
    seen = {}

    def look(self, runner):
        seen.update({} if seen else copy_of(runner.model))

    with mock.patch.object(DistillHook, 'before_train_epoch', look):
        train(new)
    adapter = 'distill.losses.neck.adapters.0.weight'
    assert torch.equal(seen['backbone.conv1.weight'], given['state_dict']['backbone.conv1.weight'])
    assert not torch.equal(seen[adapter], given['distill'][adapter.removeprefix('distill.')])


def copy_of(model) -> dict:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# EMA


@pytest.mark.slow
@pytest.mark.parametrize('update_buffers', [True, False])
def test_ema__trains_validates_saves_and_resumes(config, update_buffers):
    def with_ema(name='run', **overrides):
        cfg = config(name, overrides)
        cfg.custom_hooks.append(
            dict(
                type='EMAHook',
                ema_type='ExpMomentumEMA',
                momentum=0.01,
                gamma=2,
                update_buffers=update_buffers,
                priority=49,
            )
        )
        cfg.train_cfg.val_interval = 1
        return cfg

    first = with_ema()
    first.train_cfg.max_epochs = 1
    train(first)
    runner = train(with_ema(resume=True))
    checkpoint = load(Path(runner.work_dir) / 'epoch_2.pth')
    averaged = checkpoint['ema_state_dict']
    assert not any('distill' in key for key in (*averaged, *checkpoint['state_dict']))
    plain = MODELS.build(fcos())
    for state in (checkpoint['state_dict'], without_wrapper(averaged)):
        plain.load_state_dict(state, strict=True)
    # mmengine keeps the average in 'state_dict' and the trained weights in 'ema_state_dict'.
    name = 'backbone.conv1.weight'
    assert torch.equal(averaged[f'module.{name}'], runner.model.state_dict()[name])
    assert not torch.equal(averaged[f'module.{name}'], checkpoint['state_dict'][name])
    # The resumed run equals the uninterrupted one.
    whole = with_ema('whole')
    train(whole)
    expected = load(Path(whole.work_dir) / 'epoch_2.pth')
    for part in ('state_dict', 'ema_state_dict', 'distill'):
        assert_equal(expected[part], checkpoint[part])


def without_wrapper(averaged: dict) -> dict:
    return {key[len('module.') :]: averaged[key] for key in averaged if key != 'steps'}


# Calibration


def random_states() -> list:
    _, key, position, *_ = np.random.get_state()
    return [random.getstate(), (position, *key), torch.get_rng_state().tolist()]


@pytest.mark.smoke
def test_preserved_random_state__also_when_it_raises():
    before = random_states()
    with pytest.raises(ZeroDivisionError), preserved_random_state():
        random.random(), np.random.rand(), torch.rand(1)
        assert all(one != other for one, other in zip(before, random_states()))
        raise ZeroDivisionError
    assert before == random_states()


def test_calibration__leaves_random_state_and_data_order(config):
    """A run that calibrates has the same plain losses as one that does not.

    At a negligible weight, the losses show nothing else of the distillation.
    """
    weight = dict(loss_weight=1e-30)
    runs = {
        'random': config('random', FLIP, projection=dict(type='RandomProjection', dim=8), **weight),
        'pca': config('pca', FLIP, **weight),
    }
    states = {name: [] for name in runs}
    for name, cfg in runs.items():

        def look(self, runner, *args, name=name, **kwargs):
            states[name].append(random_states())

        with mock.patch.object(DistillHook, 'before_train_iter', look):
            train(cfg)
    assert states['random'] == states['pca'] and len(states['pca']) == 4
    losses = [
        [{key: line[key] for key in ('loss_cls', 'loss_bbox', 'loss_centerness')} for line in lines]
        for lines in (trained_losses(cfg.work_dir) for cfg in runs.values())
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_off__run_equals_plain_mmdet(config, files, tmp_path):
    """A run with weight 0 has the losses, gradient norms and weights of plain MMDetection."""
    plain = run_config(files / 'data', tmp_path / 'plain', fcos())
    off = config('off', loss_weight=0)
    for cfg in (plain, off):
        cfg.merge_from_dict(FLIP)
        cfg.optim_wrapper.clip_grad.max_norm = 1.0
        train(cfg)
    expected, found = trained_losses(plain.work_dir), trained_losses(off.work_dir)
    assert expected == [{key: line[key] for key in first} for first, line in zip(expected, found)]
    states = [load(tmp_path / name / 'epoch_2.pth')['state_dict'] for name in ('plain', 'off')]
    assert_equal(*states)


@pytest.mark.smoke
def test_calibration__equals_independent_pca(config, files, teacher):
    """Calibrated on all images, the basis spans the principal directions computed by NumPy."""
    cfg = config()
    cfg.train_cfg.max_epochs = 1
    runner = train(cfg)
    network = MODELS.build(Config.fromfile(teacher['config']).model).eval()
    network.load_state_dict(load(teacher['checkpoint'])['state_dict'], strict=True)
    samples = [
        dict(inputs=torch.from_numpy(cv2.imread(str(path))).permute(2, 0, 1), data_samples=None)
        for path in sorted((files / 'data/images').iterdir())
    ]
    mean = np.array([123.675, 116.28, 103.53]).reshape(3, 1, 1)
    std = np.array([58.395, 57.12, 57.375]).reshape(3, 1, 1)
    levels = [[], [], []]
    for sample in samples:
        image = (sample['inputs'].numpy()[::-1] - mean) / std
        image = np.pad(image, ((0, 0), (0, 0), (0, 16)))  # 64x80 to a multiple of 32
        with torch.no_grad():
            maps = network.extract_feat(torch.from_numpy(image).float()[None])
        for level, level_maps, stride in zip(levels, maps, (8, 16, 32)):
            seen = level_maps[0, :, : -(-64 // stride), : -(-80 // stride)]  # without the padding
            level.append(seen.flatten(1).double().numpy())
    for level, projection in zip(levels, runner.model.distill.losses['neck'].projections):
        positions = np.concatenate(level, axis=1)
        values, vectors = np.linalg.eigh(np.cov(positions, bias=True))
        cosines = np.linalg.svd(vectors[:, -8:].T @ projection.basis.double().numpy())[1]
        assert cosines.min() > 1 - 1e-5
        assert float(projection.variance_kept) == pytest.approx(
            values[-8:].sum() / values.sum(), abs=1e-5
        )


@pytest.mark.parametrize('num_images', [0, -1, True, 2.5])
def test_hook__wrong_number_of_images(num_images):
    with pytest.raises(ConfigError, match='calibration_images must be a whole number'):
        HOOKS.build(dict(type='DistillHook', calibration_images=num_images))


def test_hook__plain_model(files, tmp_path):
    cfg = run_config(files / 'data', tmp_path, fcos())
    cfg.custom_hooks = [dict(type='DistillHook')]
    with pytest.raises(ConfigError, match='the model is a plain FCOS'):
        train(cfg)


def test_hook__tells_levels(config):
    cfg = config(overrides=dict(log_level='INFO'))
    cfg.train_cfg.max_epochs = 1
    train(cfg)
    log = next(Path(cfg.work_dir).glob('*/*.log')).read_text()
    assert 'fitting the projections on 8 training images' in log
    assert 'teacher.pth' in log
    for stride in (8, 16, 32):
        line = f'neck stride {stride}: channels 16 -> 24 (1x1 adapter), PCAProjection d = 8, '
        assert line in log


def test_hook__share_of_variance(config):
    cfg = config(projection=dict(type='PCAProjection', dim=0.9))
    cfg.train_cfg.max_epochs = 1
    distill = train(cfg).model.distill
    for projection in distill.losses['neck'].projections:
        assert 0.9 <= projection.variance_kept <= 1 and projection.basis.shape[1] < 24


# Inference


@pytest.mark.smoke
def test_inference__takes_distilled_and_plain_config_without_teacher(trained, teacher, files):
    work_dir, _ = trained
    paths = [str(work_dir / name) for name in ('distilled.py', 'plain.py')]
    checkpoint = str(work_dir / 'epoch_2.pth')
    image = str(files / 'data/images/0.png')
    predictions = []
    with hidden(*teacher.values()):
        for config in (*paths, *map(Config.fromfile, paths)):
            model = init_detector(config, checkpoint, device='cpu')
            assert model.dataset_meta['classes'] == ('red', 'green', 'blue')
            predictions.append(inference_detector(model, image).pred_instances)
        for config in paths:
            inferencer = DetInferencer(config, checkpoint, device='cpu', show_progress=False)
            result = inferencer(image, no_save_vis=True)['predictions'][0]
            predictions.append({key: torch.tensor(result[key]) for key in ('scores', 'labels')})
    assert len(predictions[0].scores) == 5
    for found, key in itertools.product(predictions[1:], ('scores', 'labels')):
        torch.testing.assert_close(found[key], predictions[0][key], rtol=0, atol=1e-6)
    for found in predictions[1:4]:
        assert torch.equal(found.bboxes, predictions[0].bboxes)


def test_test__runner_needs_no_teacher(trained, teacher):
    work_dir, runner = trained
    expected = runner.val()
    for name in ('distilled.py', 'plain.py'):
        config = Config.fromfile(work_dir / name)
        config.load_from = str(work_dir / 'epoch_2.pth')
        config.work_dir = str(work_dir / 'test')
        with hidden(*teacher.values()):
            assert Runner.from_cfg(config).test() == expected
    assert expected['coco/bbox_mAP'] >= 0
