import pytest
import reference
import torch
from processes import run_distributed
from torch.autograd import gradcheck

from rdimkd_det.functional import project, rdimkd_loss, standardized_loss

SIZES = [(1, 3, 1, 1, 2), (2, 6, 5, 7, 4), (3, 12, 9, 6, 1), (1, 5, 3, 11, 5)]


def make(n, c, h, w, d, dtype=torch.float64):
    student, teacher = torch.randn(2, n, c, h, w, dtype=dtype)
    basis = torch.linalg.qr(torch.randn(c, d, dtype=torch.float64)).Q.to(dtype)
    return student, 3 * teacher + 1, basis


def test_project__literal():
    feats = torch.arange(8.0).reshape(1, 2, 2, 2)
    basis = torch.tensor([[0.0], [2.0]])
    assert torch.equal(project(feats, basis), torch.tensor([[[8.0, 10.0, 12.0, 14.0]]]))


@pytest.mark.parametrize('size', SIZES)
def test_project__reference(size):
    student, _, basis = make(*size)
    n, _, h, w, d = size
    projected = project(student, basis)
    assert projected.shape == (n, d, h * w)
    expected = torch.from_numpy(reference.coordinates(student, basis))
    torch.testing.assert_close(projected.transpose(1, 2).reshape(-1, d), expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_project__half_precision_maps(dtype):
    feats, _, basis = make(2, 6, 5, 7, 4, dtype=torch.float32)
    feats = feats.to(dtype).requires_grad_()
    basis.requires_grad_()
    projected = project(feats, basis)
    assert torch.equal(projected, project(feats.float(), basis))
    weights = torch.randn_like(projected)
    of_feats, of_basis = torch.autograd.grad(projected, (feats, basis), weights)
    exact = feats.detach().double().requires_grad_(), basis.detach().double().requires_grad_()
    expected = torch.autograd.grad(project(*exact), exact, weights.double())
    assert of_feats.dtype == dtype and of_basis.dtype == torch.float32
    torch.testing.assert_close(of_feats.double(), expected[0], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(of_basis.double(), expected[1], rtol=1e-5, atol=1e-5)


def test_rdimkd_loss__literal():
    student = torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1)
    teacher = torch.tensor([1.0, 5.0]).reshape(1, 2, 1, 1)
    first, both = torch.eye(2)[:, :1], torch.eye(2)
    assert rdimkd_loss(student, teacher, first).item() == 4.0
    assert rdimkd_loss(student, teacher, both).item() == 10.0  # mean over d, not sum


@pytest.mark.parametrize('size', SIZES)
def test_rdimkd_loss__reference(size):
    student, teacher, basis = make(*size)
    loss = rdimkd_loss(student, teacher, basis)
    assert loss.shape == () and loss.dtype == torch.float64
    assert loss.item() == pytest.approx(reference.plain_loss(student, teacher, basis))


def test_rdimkd_loss__orthogonal_complement_is_free():
    student, teacher, _ = make(2, 6, 5, 7, 3)
    whole = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    basis, complement = whole[:, :3], whole[:, 3:]
    moved = student + torch.einsum('cd,ndhw->nchw', complement, 9 * student[:, :3])
    before, after = (rdimkd_loss(s, teacher, basis).item() for s in (student, moved))
    assert after == pytest.approx(before)


@pytest.mark.parametrize('loss', ['plain', 'standardized'])
def test_losses__gradcheck(loss):
    student, teacher, basis = make(2, 5, 3, 4, 2)
    fixed = project(teacher, basis)  # the teacher's coordinates take no gradient
    student.requires_grad_()
    basis.requires_grad_()

    def plain(s, k):
        return rdimkd_loss(s, teacher, k)

    def standardized(s, k):
        return standardized_loss(project(s, k), fixed)

    assert gradcheck(plain if loss == 'plain' else standardized, (student, basis))


def test_losses__no_gradient_into_teacher():
    student, teacher, basis = make(2, 5, 3, 4, 2)
    student.requires_grad_()
    teacher.requires_grad_()
    (
        rdimkd_loss(student, teacher, basis)
        + standardized_loss(project(student, basis), project(teacher, basis))
    ).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_rdimkd_loss__shapes_differ():
    with pytest.raises(ValueError, match=r'\(2, 3, 4, 5\) and teacher map \(2, 3, 4, 6\)'):
        rdimkd_loss(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 6), torch.eye(3))


@pytest.mark.parametrize('basis', [torch.eye(4), torch.zeros(3), torch.zeros(1, 3, 2)])
def test_rdimkd_loss__basis_does_not_fit(basis):
    with pytest.raises(ValueError, match=r'must be \(C, d\) with C = 3'):
        rdimkd_loss(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5), basis)


@pytest.mark.parametrize('size', SIZES[1:])
def test_standardized_loss__reference(size):
    student, teacher, basis = make(*size)
    expected = reference.standardized_loss(student, teacher, basis)
    loss = standardized_loss(project(student, basis), project(teacher, basis))
    assert loss.shape == () and loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize('size', SIZES[1:])
def test_standardized_loss__gradient_of_the_definition(size):
    student, teacher, basis = make(*size)
    student = project(student, basis).requires_grad_()
    teacher = project(teacher, basis)
    eps = 1e-6 * teacher.var((0, 2), correction=0).mean()

    def standardize(coordinates):
        variance, mean = torch.var_mean(coordinates, (0, 2), correction=0, keepdim=True)
        return (coordinates - mean) / (variance + eps).sqrt()

    expected = (standardize(student) - standardize(teacher)).square().mean()
    loss = standardized_loss(student, teacher)
    gradients = [torch.autograd.grad(3 * value, student)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_standardized_loss__is_pkd_for_whole_space():
    student, teacher, _ = make(2, 6, 5, 7, 4)
    expected = reference.correlation_loss(student, teacher)
    loss = standardized_loss(student.flatten(2), teacher.flatten(2))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('factor, expected', [(3.0, 0.0), (-3.0, 4.0)])
def test_standardized_loss__scale_and_shift_do_not_count(factor, expected):
    teacher = torch.randn(2, 3, 40)
    loss = standardized_loss(factor * teacher + 100, teacher)
    assert loss.item() == pytest.approx(expected, abs=1e-4)


def test_standardized_loss__far_mean_keeps_float32_precise():
    student, teacher = torch.randn(2, 2, 4, 300)
    near = standardized_loss(student, teacher)
    far = standardized_loss(student + 1000, teacher - 1000)
    torch.testing.assert_close(far, near, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    'student, teacher, expected',
    [
        (torch.ones(1, 3, 1), torch.randn(1, 3, 1), 0.0),  # one position
        (torch.randn(2, 3, 8), torch.zeros(2, 3, 8), 1.0),  # zero teacher
        (torch.full((2, 3, 8), 0.3), torch.randn(2, 3, 8), 1.0),  # constant student
        (torch.full((2, 3, 8), 0.3), torch.full((2, 3, 8), 0.7), 0.0),  # both constant
    ],
)
def test_standardized_loss__degenerate(student, teacher, expected):
    student = student.clone().requires_grad_()
    loss = standardized_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    assert student.grad.isfinite().all()


def test_standardized_loss__flat_teacher_direction_is_not_blown_up():
    teacher = torch.randn(2, 2, 50)
    teacher[:, 1] *= 1e-6
    student = teacher.clone()
    student[:, 1] = 1e-6 * torch.randn(2, 50)
    assert standardized_loss(student, teacher).item() < 1e-3


def test_standardized_loss__two_processes_compute_what_one_does(tmp_path):
    student, teacher = torch.randn(2, 3, 4, 20, dtype=torch.float64)
    teacher = 2 * teacher + torch.randn(3, 1, 1, dtype=torch.float64)  # ranks differ in mean
    parts = [slice(0, 1), slice(1, 3)]  # and in number of images

    def on_rank(rank):
        own = student[parts[rank]].clone().requires_grad_()
        loss = standardized_loss(own, teacher[parts[rank]])
        loss.backward()
        return loss.detach(), own.grad / 2  # DDP takes the mean over the ranks

    results = run_distributed(on_rank, tmp_path)
    student.requires_grad_()
    loss = standardized_loss(student, teacher)
    loss.backward()
    for value, _ in results:
        torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(torch.cat([grad for _, grad in results]), student.grad)


def test_rdimkd_loss__of_two_memory_formats():
    generator = torch.Generator().manual_seed(3)
    student, teacher = (
        torch.randn(2, 6, 4, 5, generator=generator, dtype=torch.float64) for _ in 'st'
    )
    student.requires_grad_()
    basis = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64))[0]
    expected = rdimkd_loss(student, teacher, basis)
    (gradient,) = torch.autograd.grad(expected, student)
    found = rdimkd_loss(student, teacher.to(memory_format=torch.channels_last), basis)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found, student)[0], gradient)
