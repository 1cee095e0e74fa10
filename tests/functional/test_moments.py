import numpy as np
import pytest
import torch
from processes import run_distributed

from rdimkd_det.functional.moments import centred, merge, merge_ranks, moments

SHAPE = (5, 3, 20)  # batch, directions, positions


def make(dtype, student_mean=0.0, teacher_mean=0.0):
    teacher = torch.randn(SHAPE, dtype=torch.float64)
    student = teacher + torch.randn(SHAPE, dtype=torch.float64)
    shift = torch.arange(5.0, dtype=torch.float64)[:, None, None]  # images differ in mean
    return (student + student_mean).to(dtype), (2 * teacher + shift + teacher_mean).to(dtype)


def reference(student, teacher):
    """Return count, means, biased variances and covariance of each direction by NumPy."""
    columns = []
    for k in range(student.shape[1]):
        s, t = student[:, k].double().numpy().ravel(), teacher[:, k].double().numpy().ravel()
        covariance = np.cov(s, t, bias=True)
        columns.append([s.size, s.mean(), t.mean(), s.var(), t.var(), covariance[0, 1]])
    return torch.tensor(columns, dtype=torch.float64).T


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize('means', [(0.0, 0.0), (1000.0, -300.0)])
def test_merge_ranks__equals_numpy(means, dtype, tolerance):
    pair = make(dtype, *means)
    (found,) = merge_ranks([moments(*centred(*pair))])
    torch.testing.assert_close(found.double(), reference(*pair), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('lengths', [[20], [10, 10], [1, 19], [7, 7, 6]])
def test_merge__pieces_equal_the_whole(lengths):
    pair = make(torch.float64, 1000.0)
    pieces = zip(*(side.split(lengths, 2) for side in pair))
    parts = torch.stack([moments(*centred(*piece)) for piece in pieces])
    whole = moments(*centred(*pair))
    torch.testing.assert_close(merge(parts), whole, rtol=1e-11, atol=1e-11)


def test_moments__exact_whichever_the_centers():
    student, teacher = make(torch.float64)
    away = torch.tensor([[1.0, 2.0, 3.0], [-3.0, 0.0, 0.5]], dtype=torch.float64)
    found = moments(student - away[0][:, None], teacher - away[1][:, None], away)
    torch.testing.assert_close(found, moments(*centred(student, teacher)))


def test_merge__literal():
    # Student 0, 2 on one side and 7 on the other; teacher 1, 1 and 4.
    parts = torch.tensor([[2.0, 1, 1, 2, 0, 0], [1.0, 7, 4, 0, 0, 0]])[..., None]
    # Means 3 and 2; deviations -3, -1, 4 and -1, -1, 2.
    assert merge(parts)[:, 0].tolist() == [3, 3, 2, 26, 6, 12]


def test_merge_ranks__levels_of_uneven_batches_in_one_exchange(tmp_path):
    levels = [make(torch.float32, 50.0), tuple(side[:, :2] for side in make(torch.float32))]
    parts = [slice(0, 1), slice(1, 5)]

    def on_rank(rank):
        own = [moments(*centred(s[parts[rank]], t[parts[rank]])) for s, t in levels]
        with torch.profiler.profile() as profiler:
            merged = merge_ranks(own)
        exchanges = [event.key for event in profiler.key_averages() if event.key.startswith('c10d')]
        return merged, len(exchanges)

    for merged, num_exchanges in run_distributed(on_rank, tmp_path):
        assert num_exchanges == 1
        for found, pair in zip(merged, levels):
            torch.testing.assert_close(found.double(), reference(*pair), rtol=1e-5, atol=1e-5)


def test_merge_ranks__literal():
    # Over the positions of both images: 0, 2, 0, 2 and 1, 5, 5, 1.
    projected = torch.tensor([[[0.0, 2.0], [1.0, 5.0]], [[0.0, 2.0], [5.0, 1.0]]])
    (found,) = merge_ranks([moments(*centred(projected, projected))])
    assert found[3:].tolist() == [[1.0, 4.0]] * 3
