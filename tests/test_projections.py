import subprocess
import sys

import numpy as np
import pytest
import reference
import torch
from mmdet.registry import MODELS
from sklearn.decomposition import PCA

from rdimkd_det import (
    AutoencoderProjection,
    ConfigError,
    IdentityProjection,
    PCAProjection,
    RandomProjection,
)
from rdimkd_det.functional import rdimkd_loss
from rdimkd_det.training.calibration import ChannelCovariance

FITTED = [PCAProjection, AutoencoderProjection]


def feature_maps(channels=20, num=3, seed=0, leading=None):
    """Return maps with a decaying spectrum, mixed channels and a non-zero mean."""
    rng = np.random.default_rng(seed)
    scales = 3.0 * 0.7 ** np.arange(channels)
    scales[leading or channels :] *= 0.2
    mixing = np.linalg.qr(rng.normal(size=(channels, channels)))[0]
    positions = rng.normal(size=(num * 7 * 9, channels)) * scales @ mixing.T + 2
    maps = positions.reshape(num, 7, 9, channels).transpose(0, 3, 1, 2)
    return torch.from_numpy(maps.copy()), positions


def covariance_of(maps):
    covariance = ChannelCovariance(maps.shape[1], maps.device)
    for image in maps:
        covariance.update(image[None])
    return covariance.compute()


def assert_orthonormal(basis):
    gram = basis.double().t() @ basis.double()
    torch.testing.assert_close(gram, torch.eye(basis.shape[1]).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize('channels, dim', [(1, 1), (7, 3), (12, 12), (256, 60)])
def test_random__shape_and_orthonormal(channels, dim):
    projection = RandomProjection(dim=dim, num_channels=channels)
    assert projection.basis.shape == (channels, dim)
    assert projection.basis.dtype == torch.float32
    assert projection.fitted and not projection.needs_fit
    assert_orthonormal(projection.basis)


def test_random__is_gram_schmidt_of_seeded_gaussian():
    generator = torch.Generator().manual_seed(3000 + 2)
    gaussian = torch.randn(11, 4, generator=generator, dtype=torch.float64)
    basis = RandomProjection(dim=4, num_channels=11, level=2, seed=3).basis
    np.testing.assert_allclose(basis, reference.gram_schmidt(gaussian), atol=1e-6)


def test_random__seed_and_level_count_and_global_state_does_not():
    draws = [
        RandomProjection(dim=3, num_channels=8, **options).basis
        for options in ({}, {'seed': 1}, {'level': 1})
    ]
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(RandomProjection(dim=3, num_channels=8).basis, draws[0])
    torch.set_rng_state(state)
    RandomProjection(dim=3, num_channels=8)
    assert torch.equal(torch.get_rng_state(), state)


def test_random__same_in_another_process():
    code = (
        'import torch; torch.manual_seed(5); torch.set_num_threads(2);'
        'from rdimkd_det import RandomProjection;'
        'print(RandomProjection(dim=9, num_channels=40, level=1).basis.numpy().tobytes().hex())'
    )
    there = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    here = RandomProjection(dim=9, num_channels=40, level=1).basis.numpy().tobytes().hex()
    assert there.stdout.strip().splitlines()[-1] == here


@pytest.mark.parametrize('dim', [2, 6])
def test_random__expected_loss_is_plain_mse(dim):
    student, teacher = torch.randn(2, 2, 12, 5, 6)
    teacher[:, 0] += 4  # most of the distance in one channel
    losses = torch.stack(
        [
            rdimkd_loss(student, teacher, RandomProjection(dim, 12, seed=seed).basis)
            for seed in range(600)
        ]
    )
    mse = (student - teacher).square().mean()
    error = losses.std() / len(losses) ** 0.5
    assert error < 0.06 * mse
    assert abs(losses.mean() - mse) < 4 * error


def test_identity__basis():
    projection = IdentityProjection(num_channels=5, level=3)
    assert torch.equal(projection.basis, torch.eye(5)) and projection.fitted


@pytest.mark.parametrize('cls', [RandomProjection, PCAProjection, AutoencoderProjection])
@pytest.mark.parametrize('dim', [0, -1, 9, True, '4', None])
def test_dim__not_a_whole_number_in_range(cls, dim):
    with pytest.raises(
        ConfigError, match=f'{cls.__name__}: dim must be .* 8 channels, got {dim!r}'
    ):
        cls(dim=dim, num_channels=8)


@pytest.mark.parametrize('cls', [RandomProjection, AutoencoderProjection])
def test_dim__share_is_for_pca_only(cls):
    with pytest.raises(ConfigError, match='dim must be a whole number'):
        cls(dim=0.5, num_channels=8)


@pytest.mark.parametrize('dim', [0.0, 1.0, 1.5, -0.5, float('nan')])
def test_pca__share_out_of_range(dim):
    with pytest.raises(ConfigError, match=f'share of variance must lie between 0 and 1, got {dim}'):
        PCAProjection(dim=dim, num_channels=8)


@pytest.mark.parametrize('cls', FITTED)
def test_fitted__not_before_fit(cls):
    projection = cls(dim=3, num_channels=8)
    assert projection.needs_fit and not projection.fitted
    assert projection.variance_kept.isnan()
    assert 'to be fitted' in repr(projection)


@pytest.mark.parametrize('dim', [1, 4, 20])
def test_pca__directions_of_sklearn(dim):
    maps, positions = feature_maps()
    projection = PCAProjection(dim=dim, num_channels=20)
    projection.fit(covariance_of(maps))
    theirs = PCA(n_components=dim, svd_solver='full').fit(positions)
    cosines = (projection.basis.double().numpy() * theirs.components_.T).sum(0)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-6)
    kept = theirs.explained_variance_ratio_.sum()
    assert projection.variance_kept.item() == pytest.approx(kept, abs=1e-6)
    assert_orthonormal(projection.basis)


@pytest.mark.parametrize('share', [0.3, 0.8, 0.95, 0.999999])
def test_pca__share_keeps_what_sklearn_keeps(share):
    maps, positions = feature_maps()
    projection = PCAProjection(dim=share, num_channels=20)
    projection.fit(covariance_of(maps))
    theirs = PCA(n_components=share, svd_solver='full').fit(positions)
    assert projection.basis.shape == (20, theirs.n_components_)
    angles = reference.principal_angles(theirs.components_.T, projection.basis)
    assert angles.max() < 1e-5
    assert projection.variance_kept >= share - 1e-7


def test_pca__share_met_exactly_takes_no_more():
    projection = PCAProjection(dim=0.75, num_channels=4)
    projection.fit(torch.eye(4, dtype=torch.float64))
    assert projection.basis.shape == (4, 3)


def test_pca__sign_is_fixed():
    maps, _ = feature_maps()
    covariance = covariance_of(maps)
    projection = PCAProjection(dim=6, num_channels=20)
    projection.fit(covariance)
    largest = projection.basis.gather(0, projection.basis.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


@pytest.mark.parametrize('dim', [1, 5, 12])
def test_autoencoder__spans_the_principal_subspace(dim):
    maps, positions = feature_maps(leading=dim)
    projection = AutoencoderProjection(dim=dim, num_channels=20)
    projection.fit(covariance_of(maps))
    theirs = PCA(n_components=dim, svd_solver='full').fit(positions)
    angles = reference.principal_angles(theirs.components_.T, projection.basis)
    assert angles.max() < 0.1
    assert_orthonormal(projection.basis)


@pytest.mark.parametrize('dim', [1, 5, 12, 19])
def test_autoencoder__keeps_the_variance_pca_keeps(dim):
    maps, positions = feature_maps()
    projection = AutoencoderProjection(dim=dim, num_channels=20)
    projection.fit(covariance_of(maps))
    best = PCA(n_components=dim, svd_solver='full').fit(positions).explained_variance_ratio_.sum()
    assert best - 1e-4 < projection.variance_kept.item() < best + 1e-6


def test_autoencoder__low_rank_features():
    # FPN maps are like this: channels are copies of few directions.
    basis = torch.linalg.qr(torch.randn(96, 8, dtype=torch.float64)).Q
    projection = AutoencoderProjection(dim=16, num_channels=96)
    projection.fit(basis @ basis.t() + 1e-9 * torch.eye(96))
    assert projection.variance_kept.item() > 0.9999
    assert_orthonormal(projection.basis)


def test_autoencoder__reproducible_and_leaves_random_state():
    maps, _ = feature_maps()
    first, second = (AutoencoderProjection(dim=3, num_channels=20) for _ in range(2))
    other = AutoencoderProjection(dim=3, num_channels=20, level=1)
    first.fit(covariance_of(maps))
    torch.manual_seed(77)
    state = torch.get_rng_state()
    with torch.no_grad():  # as DistillHook fits
        second.fit(covariance_of(maps))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.basis, second.basis) and not first.basis.requires_grad
    other.fit(covariance_of(maps))
    assert not torch.allclose(other.basis, first.basis, atol=1e-2)


@pytest.mark.parametrize('dim', [2, 6])
@pytest.mark.parametrize('cls', FITTED)
def test_fit__teacher_that_never_varies(cls, dim):
    projection = cls(dim=dim, num_channels=6)
    projection.fit(torch.zeros(6, 6, dtype=torch.float64))
    assert projection.basis.shape == (6, dim)
    assert_orthonormal(projection.basis)
    assert projection.variance_kept == 0


@pytest.mark.parametrize('dim', [3, 0.9])
def test_fit__fewer_positions_than_channels(dim):
    maps = feature_maps()[0][:1, :, :2, :2]
    projection = PCAProjection(dim=dim, num_channels=20)
    projection.fit(covariance_of(maps))
    assert projection.basis.shape[1] <= 3
    assert_orthonormal(projection.basis)


def test_fit__measures_the_variance_a_random_basis_keeps():
    projection = RandomProjection(dim=5, num_channels=20)
    basis = projection.basis.clone()
    assert projection.variance_kept.isnan()
    projection.fit(torch.eye(20, dtype=torch.float64))
    assert projection.variance_kept.item() == pytest.approx(0.25)
    assert torch.equal(projection.basis, basis)


def test_state_dict__carries_the_fitted_size():
    maps, _ = feature_maps()
    fitted, fresh = (PCAProjection(dim=0.9, num_channels=20) for _ in range(2))
    fitted.fit(covariance_of(maps))
    fresh.load_state_dict(fitted.state_dict())
    assert fresh.fitted and torch.equal(fresh.basis, fitted.basis)
    assert fresh.variance_kept == fitted.variance_kept


def test_state_dict__of_other_channels():
    with pytest.raises(RuntimeError, match='size mismatch for basis'):
        PCAProjection(3, 20).load_state_dict(RandomProjection(3, 16).state_dict())


def test_buffers__no_parameters():
    projection = RandomProjection(dim=2, num_channels=4)
    assert not list(projection.parameters())
    assert not projection.basis.requires_grad


@pytest.mark.parametrize('kind', ['PCAProjection', 'AutoencoderProjection', 'RandomProjection'])
def test_fit__not_finite(kind):
    projection = MODELS.build(dict(type=kind, dim=2, num_channels=3))
    with pytest.raises(FloatingPointError, match=f'{kind}: the teacher.* hold NaN'):
        projection.fit(torch.full((3, 3), float('nan'), dtype=torch.float64))


@pytest.mark.parametrize(
    'basis, message',
    [
        (torch.eye(4), r'must be \(C, d\) with C = 6, got \(4, 4\)'),
        (2 * torch.eye(6), 'the columns of a basis must be orthonormal, K'),
        (torch.eye(6)[:, [0, 0]], 'the columns of a basis must be orthonormal, K'),
    ],
)
def test_set_basis__of_another_shape_or_not_orthonormal(basis, message):
    with pytest.raises(ConfigError, match=f'IdentityProjection: .*{message}'):
        IdentityProjection(num_channels=6).set_basis(basis)
