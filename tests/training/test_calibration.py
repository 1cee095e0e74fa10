import random

import numpy as np
import pytest
import reference
import torch
from mmdet.registry import MODELS
from mmengine.dataset import DefaultSampler, pseudo_collate
from processes import run_distributed
from runs import fcos
from sklearn.decomposition import PCA
from torch.utils.data import BatchSampler, DataLoader

from rdimkd_det import ConfigError, PCAProjection, RdimKDDistiller
from rdimkd_det.random_state import preserved_random_state
from rdimkd_det.training import calibration
from rdimkd_det.training.calibration import (
    ChannelCovariance,
    calibration_batches,
    default_calibration_images,
    fit_projections,
)

FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
RETINANET = 'retinanet/retinanet_r18_fpn_1x_coco.py'


def covariance_of(*batches):
    covariance = ChannelCovariance(batches[0].shape[1], batches[0].device)
    for feats in batches:
        covariance.update(feats)
    return covariance.compute()


def rows_of(*batches):
    return np.concatenate([reference.coordinates(b, np.eye(b.shape[1])) for b in batches])


def loader_of(num_images, batch_size=4, **options):
    images = [{'inputs': index} for index in range(num_images)]
    return DataLoader(images, batch_size, collate_fn=pseudo_collate, **options)


def images_in(batches):
    return [index for batch in batches for index in batch['inputs']]


@pytest.fixture
def distilled(tmp_path, small_config, teacher_files):
    config, checkpoint = teacher_files(tmp_path, small_config(FCOS, depth=18))

    def build(losses):
        return MODELS.build(
            {
                'type': 'RdimKDDistiller',
                'student': small_config(RETINANET).model,
                'teacher': {'config': config, 'checkpoint': checkpoint},
                'losses': losses,
            }
        )

    return build


def test_covariance__literal():
    feats = torch.tensor([[0.0, 2.0], [1.0, 5.0]]).reshape(1, 2, 2, 1)
    assert covariance_of(feats).tolist() == [[1.0, 2.0], [2.0, 4.0]]


def test_covariance__numpy_over_batches_of_different_sizes():
    batches = torch.randn(2, 6, 5, 7), 3 + torch.randn(1, 6, 3, 11), torch.randn(3, 6, 1, 1)
    covariance = covariance_of(*batches)
    assert covariance.dtype == torch.float64
    expected = np.cov(rows_of(*batches), rowvar=False, bias=True)
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_covariance__mean_far_from_zero():
    feats = 1000 + 0.01 * torch.randn(2, 4, 50, 40)
    expected = np.cov(rows_of(feats), rowvar=False, bias=True)
    np.testing.assert_allclose(covariance_of(feats), expected, atol=1e-8)


def test_covariance__half_precision_is_accumulated_in_double():
    feats = torch.randn(2, 4, 50, 40).to(torch.bfloat16)
    assert torch.equal(covariance_of(feats), covariance_of(feats.float()))


def test_covariance__two_processes_compute_what_one_does(tmp_path):
    batches = torch.randn(2, 6, 5, 7), 3 + torch.randn(1, 6, 3, 11)
    first, second = run_distributed(lambda rank: covariance_of(batches[rank]), tmp_path)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, covariance_of(*batches))


def test_fit__principal_directions_of_the_teachers_features(distilled, random_batch):
    model = distilled(
        {
            'neck': {'type': 'RdimKDLoss', 'projection': {'type': 'PCAProjection', 'dim': 3}},
            'backbone': {'type': 'RdimKDLoss', 'projection': {'type': 'PCAProjection', 'dim': 0.7}},
        }
    )
    sizes = [(70, 100), (96, 64)]
    batches = [random_batch(size=sizes, seed=seed) for seed in range(3)]
    fit_projections(model, iter(batches))  # one pass is enough
    # The teacher once more, by its own preprocessor and outside of the package.
    teacher = model.distill.teacher
    preprocess = MODELS.build(teacher.source.model.data_preprocessor)
    with torch.no_grad():
        inputs = [
            preprocess(random_batch(size=sizes, seed=seed), True)['inputs'] for seed in range(3)
        ]
        backbone = [teacher._network.backbone(images) for images in inputs]
        neck = [teacher._network.neck(feats) for feats in backbone]
    for tap, dim, feats in (('neck', 3, neck), ('backbone', 0.7, backbone)):
        loss = dict(model.distill.items())[tap]
        assert len(loss.projections) == len(feats[0])
        for projection, *maps in zip(loss.projections, *feats):
            # The positions that see an image; the batch is padded to 96x128.
            seen = [
                it[None, :, : -(-height * it.shape[1] // 96), : -(-width * it.shape[2] // 128)]
                for batch in maps
                for it, (height, width) in zip(batch, sizes)
            ]
            expected = PCA(dim, svd_solver='full').fit(rows_of(*seen))
            assert projection.basis.shape == expected.components_.T.shape
            angles = reference.principal_angles(expected.components_.T, projection.basis)
            assert angles.max() < 1e-2
            kept = expected.explained_variance_ratio_.sum()
            assert projection.variance_kept.item() == pytest.approx(kept, rel=1e-4)


def test_fit__leaves_the_networks_alone(distilled, random_batch):
    projection = {'type': 'AutoencoderProjection', 'dim': 2, 'max_iters': 5}
    model = distilled({'neck': {'type': 'RdimKDLoss', 'projection': projection}}).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    fit_projections(model, [random_batch(size=(64, 96))])
    assert model.distill.losses['neck'].fitted and model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_fit__names_a_teacher_that_cannot_be_read():
    model = RdimKDDistiller(
        student=fcos(),
        teacher=dict(config='no_such.py', checkpoint='teacher.pth'),
        losses=dict(neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection', dim=2))),
    )
    with pytest.raises(ConfigError, match=r'config no_such\.py cannot be read'):
        fit_projections(model, [])


@pytest.mark.parametrize('wanted, expected', [(1, 4), (8, 8), (9, 12), (1000, 22)])
def test_batches__number_of_images(wanted, expected):
    images = images_in(calibration_batches(loader_of(22), wanted, seed=0))
    assert len(set(images)) == expected


def test_batches__quiet_without_a_terminal(capfd):
    assert list(calibration_batches(loader_of(22), 8, seed=0))
    assert capfd.readouterr() == ('', '')


def test_batches__a_bar_on_the_terminal_of_the_first_process(monkeypatch, capsys):
    monkeypatch.setenv('FORCE_COLOR', '1')
    assert list(calibration_batches(loader_of(22), 8, seed=0))
    assert 'training images' in capsys.readouterr().err
    monkeypatch.setattr(calibration, 'is_main_process', lambda: False)
    assert list(calibration_batches(loader_of(22), 8, seed=0))
    assert capsys.readouterr().err == ''


def test_batches__the_seed_chooses():
    first, again, other = (
        images_in(calibration_batches(loader_of(40), 12, seed)) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_batches__with_a_batch_sampler():
    dataset = [{'inputs': index} for index in range(30)]
    sampler = BatchSampler(DefaultSampler(dataset), batch_size=5, drop_last=True)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=pseudo_collate)
    assert len(images_in(calibration_batches(loader, 10, seed=0))) == 10


def test_batches__training_sees_what_it_would_have_seen():
    def epoch(calibrate):
        torch.manual_seed(5)
        loader = loader_of(40, shuffle=True)
        if calibrate:
            with preserved_random_state():
                assert list(calibration_batches(loader, 12, seed=0))
        return images_in(loader)

    assert epoch(calibrate=True) == epoch(calibrate=False)


def test_batches__ranks_share_the_images_of_one_process(tmp_path):
    def on_rank(rank):
        return images_in(calibration_batches(loader_of(40, batch_size=2), 12, seed=0))

    first, second = run_distributed(on_rank, tmp_path)
    assert len(first) == len(second) == 6
    alone = images_in(calibration_batches(loader_of(40, batch_size=2), 12, seed=0))
    assert sorted(first + second) == sorted(alone)


def test_preserved_random_state__all_generators_and_after_an_error():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    with pytest.raises(KeyError), preserved_random_state():
        draw()
        raise KeyError
    assert draw() == expected


def test_fit__projection_that_learns_nothing_is_measured(distilled, random_batch):
    projection = {'type': 'RandomProjection', 'dim': 32}
    model = distilled({'neck': {'type': 'RdimKDLoss', 'projection': projection}})
    basis = model.distill.losses['neck'].projections[0].basis.clone()
    fit_projections(model, [random_batch(size=(64, 96))])
    fitted = model.distill.losses['neck'].projections[0]
    assert torch.equal(fitted.basis, basis) and not isinstance(fitted, PCAProjection)
    assert fitted.variance_kept.item() == pytest.approx(1)


@pytest.mark.parametrize('size, expected', [(118287, 256), (3000, 256), (1000, 100), (50, 32)])
def test_default_calibration_images__literal(size, expected):
    assert default_calibration_images(size) == expected
