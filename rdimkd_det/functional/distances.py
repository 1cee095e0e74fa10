"""The losses as pure tensor maths: no modules, no MMDetection.

Each loss compares two feature maps in the subspace spanned by the columns of a basis
``K`` (C, d) and averages over the batch, the positions and the ``d`` directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import starmap

import torch
from mmengine.dist import get_world_size
from torch import Tensor
from torch.autograd.function import once_differentiable

from .moments import centred, merge_ranks, moments, products

# Added to every variance, relative to the teacher's mean variance in the subspace, so that
# directions with (almost) no variance of the teacher are not scaled up to unit variance.
RELATIVE_EPS = 1e-6
# Prevents NaN on a level with a single position, where every variance is exactly 0.
ABSOLUTE_EPS = 1e-12


def working_dtype(feats: Tensor) -> torch.dtype:
    """Return the precision in which to compare feature maps: float64 for float64, else float32."""
    return torch.promote_types(feats.dtype, torch.float32)


def project(feats: Tensor, basis: Tensor) -> Tensor:
    """Compute the coordinates of feature maps along the columns of a basis.

    Args:
        feats (Tensor): Feature map (N, C, H, W), in the basis's precision or a lower one.
        basis (Tensor): Basis (C, d).

    Returns:
        Tensor: ``K^T F`` as (N, d, H * W), in the basis's precision.
    """
    return _Projection.apply(feats, basis)


def rdimkd_loss(student: Tensor, teacher: Tensor, basis: Tensor) -> Tensor:
    r"""L2 distance of two feature maps in a low-dimensional subspace (RdimKD, arXiv 2312.08700).

    .. math:: L = \frac{1}{N H W d} \sum \left( K^T F_s - K^T F_t \right)^2

    Args:
        student (Tensor): Student's feature map (N, C, H, W), any floating-point dtype.
        teacher (Tensor): Teacher's feature map of the same shape; no gradient flows into it.
        basis (Tensor): Semi-orthogonal basis ``K`` (C, d) with ``1 <= d <= C``.

    Returns:
        Tensor: The loss, a 0-dim tensor.

    Raises:
        ValueError: The maps differ in shape, or the basis has another number of channels.

    Example:
        >>> import torch
        >>> from rdimkd_det.functional import rdimkd_loss
        >>> student, teacher = torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5)
        >>> rdimkd_loss(student, teacher, torch.eye(3)).item()
        1.0
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f'rdimkd_loss: student map {tuple(student.shape)} and teacher map '
            f'{tuple(teacher.shape)} must have one shape; adapt or resize the student first.'
        )
    if basis.dim() != 2 or basis.shape[0] != student.shape[1]:
        raise ValueError(
            f'rdimkd_loss: basis {tuple(basis.shape)} must be (C, d) with C = {student.shape[1]}, '
            f"the maps' channels."
        )
    teacher = teacher.detach()
    if student.stride() == teacher.stride():
        # Projecting the difference is half the work of projecting both maps, and keeps nothing
        # with C channels for the backward pass.
        student, teacher = student.to(basis.dtype), teacher.to(basis.dtype)
        return mean_square(project(student - teacher, basis))
    # Subtracting maps of different memory formats takes longer than a second projection.
    return mean_square(project(student, basis) - project(teacher, basis))


def mean_square(projected: Tensor) -> Tensor:
    """Compute the mean of squared coordinates without a tensor of the squares.

    Args:
        projected (Tensor): Coordinates (N, d, L), or differences of coordinates.

    Returns:
        Tensor: 0-dim.
    """
    return _MeanSquare.apply(projected)


def standardized_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""L2 distance of coordinates after standardising each direction over batch and positions.

    With :math:`\hat x = (x - \mu_x) / \sigma_x` per direction, the loss is
    :math:`\operatorname{mean} (\hat s - \hat t)^2`: twice one minus the correlation of student and
    teacher along a direction, averaged over the directions. With ``K = I`` it is the loss of PKD
    (arXiv 2207.02039). The second moments are merged over the ranks, so several processes compute
    the same loss as one process with the whole batch. The loss is the same on every rank, and any
    factor that a rank multiplies it with must be too.

    Args:
        student (Tensor): Student's coordinates (N, d, L), float32 or float64.
        teacher (Tensor): Teacher's coordinates (N, d, L); no gradient flows into it.

    Returns:
        Tensor: The loss, a 0-dim tensor between 0 and 4.

    Example:
        >>> import torch
        >>> from rdimkd_det.functional import standardized_loss
        >>> teacher = torch.randn(2, 3, 20)
        >>> round(standardized_loss(7 - 5 * teacher, teacher).item(), 3)
        4.0
    """
    return standardized_losses([(student, teacher)])[0]


def standardized_losses(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Compute :func:`standardized_loss` of several levels with one exchange between the ranks.

    Args:
        pairs (Iterable[tuple[Tensor, Tensor]]): Coordinates (N, d, L) of student and teacher, one
            pair per level. A generator saves memory: each pair is freed before the next is made.

    Returns:
        list[Tensor]: The losses, 0-dim tensors.
    """
    levels = list(starmap(centred, pairs))
    if not levels:
        return []
    statistics = merge_ranks(list(starmap(moments, levels)))
    return [
        _StandardizedDistance.apply(*level, of_all_ranks)
        for level, of_all_ranks in zip(levels, statistics)
    ]


class _Projection(torch.autograd.Function):
    """``K^T F``, which saves the map only if needed, and then without a higher-precision copy."""

    @staticmethod
    def forward(ctx: object, feats: Tensor, basis: Tensor) -> Tensor:
        ctx.save_for_backward(feats if ctx.needs_input_grad[1] else None, basis)
        ctx.shape, ctx.dtype = feats.shape, feats.dtype
        # Detached: with a matrix that requires grad, `matmul` transposes the maps, a copy.
        return basis.detach().t() @ feats.flatten(2).to(basis.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        feats, basis = ctx.saved_tensors
        of_feats = of_basis = None
        if ctx.needs_input_grad[0]:
            of_feats = (basis.detach() @ gradient).to(ctx.dtype).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            feats = feats.flatten(2).to(basis.dtype)
            of_basis = (feats @ gradient.transpose(1, 2)).sum(0)
        return of_feats, of_basis


class _MeanSquare(torch.autograd.Function):
    """See :func:`mean_square`."""

    @staticmethod
    def forward(ctx: object, projected: Tensor) -> Tensor:
        ctx.save_for_backward(projected)
        return products(projected, projected).sum() / projected.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        (projected,) = ctx.saved_tensors
        return projected * (2 / projected.numel() * gradient)


class _StandardizedDistance(torch.autograd.Function):
    """See :func:`standardized_loss`; the gradient is in closed form.

    The loss depends on the coordinates only through each direction's variances and covariance. So
    its gradient is ``slope_s * s + slope_t * t + shift`` with three numbers per direction, and the
    backward pass reads the coordinates once.
    """

    @staticmethod
    def forward(ctx: object, s: Tensor, t: Tensor, centers: Tensor, statistics: Tensor) -> Tensor:
        count, mean_s, mean_t, var_s, var_t, covariance = statistics
        eps = RELATIVE_EPS * var_t.mean() + ABSOLUTE_EPS
        inv_s, inv_t = (var_s + eps).rsqrt(), (var_t + eps).rsqrt()
        correlation = covariance * inv_s * inv_t
        scale = 2 / (count * len(count))
        slope_s = scale * inv_s.square() * (eps * inv_s.square() + correlation)
        slope_t = -scale * inv_s * inv_t
        shift = -slope_s * (mean_s - centers[0]) - slope_t * (mean_t - centers[1])
        ctx.save_for_backward(s, t, torch.stack([slope_s, slope_t, shift]))
        return (var_s * inv_s.square() + var_t * inv_t.square() - 2 * correlation).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor | None, ...]:
        s, t, factors = ctx.saved_tensors
        # Every rank's loss depends on all ranks' coordinates, and `gradient` is equal on all ranks.
        slope_s, slope_t, shift = (get_world_size() * gradient * factors)[..., None]
        return torch.addcmul(shift, s, slope_s).addcmul_(t, slope_t), None, None, None
