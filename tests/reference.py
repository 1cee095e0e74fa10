"""An independent implementation of RdimKD in NumPy float64, from the docs, not from the package.

Maps are (N, C, H, W). ``K`` is (C, d).
"""

import numpy as np


def coordinates(feats, basis):
    """Return K^T F at every position, as rows (N * H * W, d)."""
    feats = np.asarray(feats, dtype=np.float64)
    positions = np.moveaxis(feats, 1, -1).reshape(-1, feats.shape[1])
    return positions @ np.asarray(basis, dtype=np.float64)


def adapt(feats, weight, bias):
    """Apply a 1x1 convolution with weight (C_t, C_s) and bias (C_t,)."""
    feats = np.asarray(feats, dtype=np.float64)
    return np.einsum('tc,nchw->nthw', weight, feats) + np.reshape(bias, (1, -1, 1, 1))


def plain_loss(student, teacher, basis):
    """Return the mean over N, H, W, d of (K^T F_s - K^T F_t)^2."""
    return np.mean((coordinates(student, basis) - coordinates(teacher, basis)) ** 2)


def teacher_variance(teacher, basis):
    """Return the mean over the directions of the biased variance over all positions."""
    return np.mean(np.var(coordinates(teacher, basis), axis=0))


def teacher_scaled_loss(student, teacher, basis):
    """Return the share of the teacher's variance that the student misses."""
    return plain_loss(student, teacher, basis) / teacher_variance(teacher, basis)


def standardize(columns, eps=0.0):
    """Standardise every column to mean 0 and (with eps = 0) biased deviation 1."""
    columns = columns - columns.mean(axis=0)
    return columns / np.sqrt((columns**2).mean(axis=0) + eps)


def standardized_loss(student, teacher, basis, relative_eps=1e-6):
    """Return the mean over positions and directions of squared standardised differences.

    The epsilon under both deviations is relative to the teacher's mean variance.
    """
    eps = relative_eps * teacher_variance(teacher, basis)
    student, teacher = coordinates(student, basis), coordinates(teacher, basis)
    return np.mean((standardize(student, eps) - standardize(teacher, eps)) ** 2)


def correlation_loss(student, teacher):
    """Return PKD's loss: twice one minus the correlation, mean over channels."""
    channels = [np.moveaxis(np.asarray(f, dtype=np.float64), 1, 0) for f in (student, teacher)]
    correlations = [np.corrcoef(s.ravel(), t.ravel())[0, 1] for s, t in zip(*channels)]
    return np.mean([2 * (1 - r) for r in correlations])


def gram_schmidt(matrix):
    """Return orthonormal columns that span the same nested subspaces, with the columns' signs."""
    columns = []
    for column in np.asarray(matrix, dtype=np.float64).T:
        for _ in range(2):  # twice is enough for full precision
            for done in columns:
                column = column - (done @ column) * done
        columns.append(column / np.linalg.norm(column))
    return np.stack(columns, axis=1)


def principal_angles(first, second):
    """Return the angles in radians between the column spaces of two orthonormal matrices."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    missed = second - first @ (first.T @ second)  # sines: exact for small angles
    return np.arcsin(np.clip(np.linalg.svd(missed, compute_uv=False), 0, 1))
