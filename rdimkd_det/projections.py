"""Projections: the bases ``K`` (C, d) of RdimKD, one module per FPN level."""

from __future__ import annotations

import math

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from .errors import ConfigError
from .host.registry import register
from .options import is_whole_number

# By their names in `distill_config` and tools/distill.py.
PROJECTIONS = {
    'pca': 'PCAProjection',
    'autoencoder': 'AutoencoderProjection',
    'random': 'RandomProjection',
    'identity': 'IdentityProjection',
}


class Projection(nn.Module):
    """A fixed semi-orthogonal basis, ``K^T K = I``.

    A projection of one's own calls :meth:`set_basis` in its ``__init__``, or implements
    :meth:`learn_basis`. It is built per level, with its options, ``num_channels`` and ``level``.

    Attributes:
        basis (Tensor): The buffer ``K`` (C, d); (C, 0) until a projection that learns from the
            teacher's features is fitted.
        variance_kept (Tensor): 0-dim, the share of the teacher's variance that lies in the
            subspace; NaN until it is measured.
        dim (int | float | None): What the config asks for: d, or a share of variance; None for a
            projection without such an option.

    Args:
        num_channels (int): Channels C of the teacher's feature map.
    """

    dim: int | float | None = None

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.register_buffer('basis', torch.zeros(num_channels, 0))
        self.register_buffer('variance_kept', torch.tensor(float('nan')))

    @property
    def needs_fit(self) -> bool:
        """bool: Whether the projection learns its basis."""
        return type(self).learn_basis is not Projection.learn_basis

    @property
    def fitted(self) -> bool:
        """bool: Whether the basis is known."""
        return self.basis.shape[1] > 0

    @property
    def configured(self) -> str:
        """str: Type and d as the config asks for them, the same before and after fitting."""
        dim = self.dim
        if dim is None:
            dim = 'learned' if self.needs_fit else self.basis.shape[1]
        return f'{type(self).__name__}, dim {dim}'

    @property
    def summary(self) -> str:
        """str: Type, d, and the share of the teacher's variance in the subspace once measured."""
        kept = float(self.variance_kept)
        share = '' if math.isnan(kept) else f', {kept:.1%} of the variance'
        return f'{type(self).__name__} d = {self.basis.shape[1] or "to be fitted"}{share}'

    def check_fitted(self, who: str) -> None:
        """Raise a RuntimeError, which names ``who`` needs the basis, unless it is known."""
        if not self.fitted:
            raise RuntimeError(
                f"{who}: {type(self).__name__} learns its basis from the teacher's features and "
                f'is not fitted; DistillHook does that before training.'
            )

    def fit(self, covariance: Tensor) -> None:
        """Learn the basis, if the projection learns one, and measure the variance it keeps.

        Args:
            covariance (Tensor): Channel covariance (C, C) of the teacher's feature map, float64.

        Raises:
            FloatingPointError: The covariance holds NaN or infinity.
        """
        covariance = covariance.cpu().double()
        if not covariance.isfinite().all():
            raise FloatingPointError(
                f"{type(self).__name__}: the teacher's feature maps of the calibration images hold "
                f'NaN or infinity; is its checkpoint sound, and its input what it expects?'
            )
        if self.needs_fit:
            self.set_basis(self.learn_basis(covariance))
        basis = self.basis.cpu().double()
        total = covariance.trace().clamp(min=torch.finfo(covariance.dtype).tiny)
        self.variance_kept.copy_((basis * (covariance @ basis)).sum() / total)

    def learn_basis(self, covariance: Tensor) -> Tensor:
        """Compute the basis (C, d) from the channel covariance (C, C), float64.

        Both are on the CPU, so that the basis does not depend on the device.
        """
        raise NotImplementedError

    def set_basis(self, basis: Tensor) -> None:
        """Set the basis (C, d); a ConfigError says if its shape or its columns do not fit."""
        if basis.dim() != 2 or basis.shape[0] != self.num_channels:
            raise ConfigError(
                f'{type(self).__name__}: a basis must be (C, d) with C = {self.num_channels}, got '
                f'{tuple(basis.shape)}.'
            )
        if not torch.allclose(basis.t() @ basis, torch.eye(basis.shape[1]).to(basis), atol=1e-3):
            raise ConfigError(
                f'{type(self).__name__}: the columns of a basis must be orthonormal, K^T K = I; '
                f'torch.linalg.qr(basis).Q makes them so.'
            )
        # Contiguous, as a checkpoint restores it, so that products round equally in a resumed run.
        self.basis = basis.to(self.basis).contiguous()

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # Only the checkpoint knows the number of directions of a fitted basis.
        basis = state_dict.get(prefix + 'basis')
        if basis is not None and basis.shape[0] == self.num_channels:
            self.basis = self.basis.new_empty(basis.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f'num_channels={self.num_channels}, dim={self.basis.shape[1] or "to be fitted"}'


def default_dim(student_channels: int, teacher_channels: int) -> int:
    """Return the number of directions d that suits two models: a quarter of the fewer channels.

    A student of 32 channels that must match 32 directions has no complement left in which it is
    free: docs/results.md has AP over d for several pairs.
    """
    return max(1, min(student_channels, teacher_channels) // 4)


def check_dim(name: str, dim: int, num_channels: int) -> int:
    """Return ``dim`` if it is a whole number from 1 to the number of channels."""
    if not is_whole_number(dim, least=1) or dim > num_channels:
        raise ConfigError(
            f"{name}: dim must be a whole number from 1 to the teacher's {num_channels} channels, "
            f'got {dim!r}.'
        )
    return dim


@register(MODELS)
class RandomProjection(Projection):
    """RdimKD-R: a random orthonormal basis, the Q of a seeded Gaussian matrix.

    It needs no calibration, and a seed gives the same basis on every rank and machine.

    Args:
        dim (int): Number of directions d, 1 to C.
        num_channels (int): Channels C of the teacher's feature map.
        level (int): Index of the FPN level; each level draws its own basis. Defaults to 0.
        seed (int): Seed of the draw. Defaults to 0.

    Raises:
        ConfigError: ``dim`` is not from 1 to C.

    Example:
        >>> from rdimkd_det import RandomProjection
        >>> RandomProjection(dim=4, num_channels=16).basis.shape
        torch.Size([16, 4])
    """

    def __init__(self, dim: int, num_channels: int, level: int = 0, seed: int = 0) -> None:
        super().__init__(num_channels)
        check_dim('RandomProjection', dim, num_channels)
        generator = torch.Generator().manual_seed(seed * 1000 + level)
        gaussian = torch.randn(num_channels, dim, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        # QR is unique only up to the signs of R's diagonal, which differ between LAPACK builds.
        self.set_basis(q * r.diagonal().sign())


@register(MODELS)
class IdentityProjection(Projection):
    """``K = I``: all C directions, the naive-L2 control of RdimKD.

    Args:
        num_channels (int): Channels C of the teacher's feature map.
        level (int): Ignored; accepted because every projection gets it. Defaults to 0.
    """

    def __init__(self, num_channels: int, level: int = 0) -> None:
        super().__init__(num_channels)
        self.set_basis(torch.eye(num_channels))


@register(MODELS)
class PCAProjection(Projection):
    """RdimKD-P: the leading principal directions of the teacher's feature map.

    Args:
        dim (int | float): Number of directions d, 1 to C; or a float between 0 and 1 (exclusive),
            the share of the teacher's variance to keep with as few directions as possible.
        num_channels (int): Channels C of the teacher's feature map.
        level (int): Ignored; accepted because every projection gets it. Defaults to 0.

    Raises:
        ConfigError: ``dim`` is neither an int from 1 to C nor a float between 0 and 1.

    Example:
        >>> import torch
        >>> from rdimkd_det import PCAProjection
        >>> projection = PCAProjection(dim=0.9, num_channels=3)
        >>> projection.fit(torch.diag(torch.tensor([1.0, 90.0, 9.0], dtype=torch.float64)))
        >>> projection.basis.shape, round(projection.variance_kept.item(), 2)
        (torch.Size([3, 1]), 0.9)
    """

    def __init__(self, dim: int | float, num_channels: int, level: int = 0) -> None:
        super().__init__(num_channels)
        if not isinstance(dim, float):
            check_dim('PCAProjection', dim, num_channels)
        elif not 0 < dim < 1:
            raise ConfigError(
                f'PCAProjection: dim as a share of variance must lie between 0 and 1, got {dim!r}; '
                f"a number of directions is an int from 1 to the teacher's {num_channels} channels."
            )
        self.dim = dim

    def learn_basis(self, covariance: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        dim = self.dim
        if isinstance(dim, float):
            wanted = dim * values.sum() * (1 - 1e-12)
            dim = min(int((values.cumsum(0) < wanted).sum()) + 1, self.num_channels)
        # An eigenvector is unique up to its sign: make its largest entry positive.
        vectors = vectors[:, :dim]
        largest = vectors.abs().argmax(dim=0, keepdim=True)
        return vectors * vectors.gather(0, largest).sign()


@register(MODELS)
class AutoencoderProjection(Projection):
    """RdimKD-A: the encoder of a linear autoencoder, trained to reconstruct the teacher's features.

    Encoder E (d, C) and decoder D (C, d) minimise the mean of ``|x - D E x|^2`` over the centred
    features x of the calibration images. For a linear autoencoder this equals
    ``tr((I - D E) S (I - D E)^T)`` with the features' covariance S. So training needs only the
    covariance and uses every calibration feature at every step. The encoder's rows are
    orthonormalised before use. They span (nearly) the principal subspace, but are not the
    principal directions.

    Args:
        dim (int): Number of directions d, 1 to C.
        num_channels (int): Channels C of the teacher's feature map.
        level (int): Index of the FPN level; each level draws its own initial weights. Defaults
            to 0.
        seed (int): Seed of the initial weights. Defaults to 0.
        max_iters (int): Iterations of the optimiser (L-BFGS). Defaults to 300.

    Raises:
        ConfigError: ``dim`` is not from 1 to C.
    """

    def __init__(
        self, dim: int, num_channels: int, level: int = 0, seed: int = 0, max_iters: int = 300
    ) -> None:
        super().__init__(num_channels)
        self.dim = check_dim('AutoencoderProjection', dim, num_channels)
        self.seed = seed * 1000 + level
        self.max_iters = max_iters

    @torch.enable_grad()
    def learn_basis(self, covariance: Tensor) -> Tensor:
        tiny = torch.finfo(covariance.dtype).tiny  # a level that never varies has trace 0
        covariance = covariance / covariance.trace().clamp(min=tiny)
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.randn(self.num_channels, self.dim, generator=generator, dtype=torch.float64)
        # Start inside the range of the covariance: components of the encoder along directions
        # without variance get no gradient, and would stay in the subspace to the end.
        start = torch.linalg.qr(covariance @ draw).Q.contiguous()
        encoder = start.t().clone(memory_format=torch.contiguous_format).requires_grad_()
        decoder = start.requires_grad_()
        precise = dict(history_size=20, tolerance_change=1e-14, line_search_fn='strong_wolfe')
        optimizer = torch.optim.LBFGS([encoder, decoder], max_iter=self.max_iters, **precise)

        def reconstruction_error() -> Tensor:
            optimizer.zero_grad()
            missed = torch.eye(self.num_channels, dtype=torch.float64) - decoder @ encoder
            error = ((missed @ covariance) * missed).sum()
            error.backward()
            return error

        optimizer.step(reconstruction_error)
        return torch.linalg.qr(encoder.detach().t()).Q
