import copy
import math

import pytest
import reference
import torch

from rdimkd_det import ConfigError, IdentityProjection, PCAProjection, RandomProjection, RdimKDLoss
from rdimkd_det.functional import project, rdimkd_loss
from rdimkd_det.losses.adapters import project_adapted

MODES = (None, 'teacher', 'standardize')
REFERENCES = {
    None: reference.plain_loss,
    'teacher': reference.teacher_scaled_loss,
    'standardize': reference.standardized_loss,
}
SIZES = [(9, 7), (5, 4)]


def pyramid(channels, num=2, sizes=SIZES, **options):
    return [torch.randn(num, channels, *size, **options) for size in sizes]


def build(student=6, teacher=6, dim=3, num_levels=2, **options):
    projection = options.pop('projection', {'type': 'RandomProjection', 'dim': dim})
    return RdimKDLoss(projection, student, teacher, num_levels, **options)


@pytest.mark.parametrize('normalize', MODES)
def test_forward__keys_shapes_and_gradients(normalize):
    loss = build(8, 12, normalize=normalize)
    student = [maps.requires_grad_() for maps in pyramid(8)]
    teacher = [maps.requires_grad_() for maps in pyramid(12)]
    losses = loss(student, teacher)
    assert list(losses) == ['loss_rdimkd_0', 'loss_rdimkd_1']
    assert all(value.shape == () and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    assert all(maps.grad.abs().sum() > 0 for maps in student)
    assert all(maps.grad is None for maps in teacher)
    assert all(adapter.weight.grad.abs().sum() > 0 for adapter in loss.adapters)


@pytest.mark.parametrize('normalize', MODES)
@pytest.mark.parametrize('channels', [(6, 6), (4, 9)])
def test_forward__reference(channels, normalize):
    c_s, c_t = channels
    loss = build(c_s, c_t, normalize=normalize, loss_weight=2.5).double()
    student, teacher = pyramid(c_s, dtype=torch.float64), pyramid(c_t, dtype=torch.float64)
    teacher[1] = 30 * teacher[1] + 5
    losses = loss(student, teacher)
    for level, value in enumerate(losses.values()):
        adapted = student[level]
        if c_s != c_t:
            conv = loss.adapters[level]
            torch.nn.init.normal_(conv.bias)
            value = list(loss(student, teacher).values())[level]
            weight, bias = conv.weight.detach().flatten(1), conv.bias.detach()
            adapted = reference.adapt(adapted, weight.numpy(), bias.numpy())
        basis = loss.projections[level].basis
        expected = 2.5 * REFERENCES[normalize](adapted, teacher[level], basis)
        assert value.item() == pytest.approx(expected, rel=1e-5)


def test_forward__module_equals_function():
    loss = build(normalize=None)
    student, teacher = pyramid(6), pyramid(6)
    values = loss(student, teacher).values()
    for value, s, t, projection in zip(values, student, teacher, loss.projections):
        assert torch.equal(value, rdimkd_loss(s, t, projection.basis))


def test_forward__standardize_with_identity_is_pkd():
    loss = build(projection={'type': 'IdentityProjection'})
    student, teacher = pyramid(6), pyramid(6)
    for value, s, t in zip(loss(student, teacher).values(), student, teacher):
        assert value.item() == pytest.approx(reference.correlation_loss(s, t), rel=1e-4)


@pytest.mark.parametrize('normalize', [None, 'teacher'])
@pytest.mark.parametrize('channels', [(6, 6), (4, 6)])
def test_forward__all_directions_equal_the_identity(channels, normalize):
    whole = build(*channels, dim=6, normalize=normalize)
    identity = build(*channels, projection={'type': 'IdentityProjection'}, normalize=normalize)
    student, teacher = pyramid(channels[0]), pyramid(channels[1])
    for value, expected in zip(
        whole(student, teacher).values(), identity(student, teacher).values()
    ):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize('normalize', MODES)
@pytest.mark.parametrize('fit', [False, True])
def test_forward__student_like_teacher_is_zero(fit, normalize):
    projection = {'type': 'PCAProjection', 'dim': 0.9} if fit else {'type': 'IdentityProjection'}
    loss = build(projection=projection, normalize=normalize)
    teacher = pyramid(6)
    for maps, p in zip(teacher, loss.projections):
        p.fit(torch.cov(maps.transpose(0, 1).flatten(1)))
    for value in loss(teacher, teacher).values():
        assert value.item() == pytest.approx(0, abs=1e-5)


def test_forward__adapter_can_turn_student_into_teacher():
    loss = build(4, 6)
    student = pyramid(4)
    with torch.no_grad():
        teacher = [adapter(maps) for adapter, maps in zip(loss.adapters, student)]
    assert all(value < 1e-5 for value in loss(student, teacher).values())


@pytest.mark.parametrize('normalize', MODES)
@pytest.mark.parametrize('num, size', [(1, (1, 1)), (2, (1, 1)), (1, (3, 5))])
def test_forward__few_positions(num, size, normalize):
    loss = build(num_levels=1, normalize=normalize)
    student = pyramid(6, num, [size])[0].requires_grad_()
    value = loss([student], [torch.randn(num, 6, *size)])['loss_rdimkd_0']
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


def test_forward__one_position_standardized_is_zero():
    value = build(num_levels=1)(pyramid(6, 1, [(1, 1)]), pyramid(6, 1, [(1, 1)]))
    assert value['loss_rdimkd_0'].item() == 0


@pytest.mark.parametrize('normalize', [None, 'standardize'])
@pytest.mark.parametrize('constant', [0.0, 3.0])
def test_forward__teacher_that_never_varies(constant, normalize):
    loss = build(normalize=normalize)
    student = [maps.requires_grad_() for maps in pyramid(6)]
    values = loss(student, [torch.full_like(maps, constant) for maps in student])
    sum(values.values()).backward()
    assert all(value.isfinite() for value in values.values())
    assert all(maps.grad.abs().max() < 10 for maps in student)


@pytest.mark.parametrize('normalize', MODES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_forward__half_precision_gives_float32(dtype, normalize):
    loss = build(4, 6, normalize=normalize)
    student, teacher = pyramid(4), pyramid(6)
    low = [[maps.to(dtype) for maps in side] for side in (student, teacher)]
    exact = copy.deepcopy(loss)([s.float() for s in low[0]], [t.float() for t in low[1]])
    with torch.autocast('cpu', torch.bfloat16):
        values = loss(*low)
    for name, value in values.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, exact[name])  # the maths is not autocast


@pytest.mark.parametrize('normalize', MODES)
@pytest.mark.parametrize('channels', [(64, 64), (48, 64)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_forward__keeps_no_map_but_the_students_own(dtype, channels, normalize):
    """The backward pass keeps d channels per side and, with an adapter, the student's map."""
    loss = build(*channels, dim=16, num_levels=1, normalize=normalize)
    student = torch.randn(2, channels[0], 40, 30, dtype=dtype, requires_grad=True)
    teacher = torch.randn(2, channels[1], 40, 30, dtype=dtype)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        loss([student], [teacher])
    own = student.untyped_storage().data_ptr()
    sizes = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept
    }
    assert (own in sizes) == (channels[0] != channels[1])
    positions, small = 2 * 40 * 30, 4 * 64 * 64  # bytes of a basis and of its like
    others = sum(size for pointer, size in sizes.items() if pointer != own)
    assert others <= 2 * 4 * 16 * positions + 3 * small


def test_forward__float64_stays_float64():
    values = build().double()(pyramid(6, dtype=torch.float64), pyramid(6, dtype=torch.float64))
    assert all(value.dtype == torch.float64 for value in values.values())


def test_project_adapted__equals_unfolded():
    loss = build(5, 8, dim=3, num_levels=1).double()
    adapter, basis = loss.adapters[0], loss.projections[0].basis
    torch.nn.init.normal_(adapter.bias)
    student = torch.randn(2, 5, 4, 7, dtype=torch.float64, requires_grad=True)
    leaves = [student, adapter.weight, adapter.bias]
    folded = project_adapted(student, adapter, basis)
    unfolded = project(adapter(student), basis)
    torch.testing.assert_close(folded, unfolded)
    weights = torch.randn_like(folded)
    pairs = [torch.autograd.grad((maps * weights).sum(), leaves) for maps in (folded, unfolded)]
    for gradient, expected in zip(*pairs):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize('normalize', MODES)
def test_forward__gradcheck_through_adapter(normalize):
    loss = build(3, 5, dim=2, num_levels=1, normalize=normalize).double().eval()
    teacher = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    student = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    loss([student], [teacher])  # sets the running scale

    def value(student, *parameters):
        return loss([student], [teacher])['loss_rdimkd_0']

    assert torch.autograd.gradcheck(value, (student, *loss.adapters[0].parameters()))


def test_adapter__bias_under_standardize_is_0_with_gradient_0():
    loss = build(4, 6)
    student, teacher = pyramid(4), pyramid(6)
    values = loss(student, teacher)
    sum(values.values()).backward()
    assert all(not adapter.bias.grad.any() for adapter in loss.adapters)
    for adapter in loss.adapters:  # as an earlier version's checkpoint may have it
        torch.nn.init.normal_(adapter.bias)
    assert loss(student, teacher) == values


def test_adapter__only_where_channels_differ():
    loss = build([4, 6], [6, 6])
    assert isinstance(loss.adapters[0], torch.nn.Conv2d)
    assert loss.adapters[0].weight.shape == (6, 4, 1, 1)
    assert isinstance(loss.adapters[1], torch.nn.Identity)
    assert len(list(loss.parameters())) == 2


def test_adapter__drawn_apart_from_the_global_state():
    state = torch.get_rng_state()
    first = build(4, 6)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    second = build(4, 6)
    assert torch.equal(first.adapters[0].weight, second.adapters[0].weight)
    assert not torch.equal(first.adapters[0].weight, first.adapters[1].weight)


def test_adapter__keeps_the_scale():
    adapter = build(64, 256).adapters[0]
    assert adapter(torch.randn(4, 64, 20, 20)).std().item() == pytest.approx(1, abs=0.05)


def test_teacher_scale__literal_running_average():
    loss = build(
        1, 1, num_levels=1, projection={'type': 'IdentityProjection'},
        normalize='teacher', momentum=0.25,
    )  # fmt: skip
    student = [torch.zeros(1, 1, 1, 2)]
    values = [
        loss(student, [torch.tensor([[[[-size, size]]]])])['loss_rdimkd_0'].item()
        for size in (2.0, 4.0)
    ]
    # Variances 4, then 4 + 0.25 * (16 - 4) = 7.
    assert values == pytest.approx([4 / 4, 16 / 7])
    loss.eval()
    value = loss(student, [torch.tensor([[[[-7.0, 7.0]]]])])['loss_rdimkd_0']
    assert value.item() == pytest.approx(49 / 7)
    assert loss.teacher_variance.tolist() == [7.0]


@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (2, 1, 4, 4)])
def test_teacher_scale__a_teacher_that_does_not_vary_teaches_nothing(shape):
    identity = {'type': 'IdentityProjection'}
    loss = build(1, 1, num_levels=1, projection=identity, normalize='teacher')
    student = torch.ones(shape, requires_grad=True)
    (value,) = loss([student], [torch.zeros(shape)]).values()
    value.backward()
    assert value == 0 and not student.grad.any()
    (value,) = loss([student], [torch.full(shape, math.nan)]).values()
    assert value.isnan()  # and is told


def test_teacher_scale__student_of_zeros_misses_everything():
    loss = build(normalize='teacher', projection={'type': 'IdentityProjection'})
    teacher = [maps - maps.mean((0, 2, 3), keepdim=True) for maps in pyramid(6)]
    for value in loss([torch.zeros_like(maps) for maps in teacher], teacher).values():
        assert value.item() == pytest.approx(1, rel=1e-5)


def test_weight__per_level_and_factor():
    student, teacher = pyramid(6), pyramid(6)
    plain = list(build()(student, teacher).values())
    loss = build(loss_weight=[2, 0])
    assert loss.active
    values = list(loss(student, teacher).values())
    assert values[0] == 2 * plain[0] and values[1] == 0
    loss.factor = 0.5
    assert loss(student, teacher)['loss_rdimkd_0'] == plain[0]
    loss.factor = 0
    assert not loss.active


@pytest.mark.parametrize('normalize', [None, 'teacher', 'standardize'])
def test_weight__zero_leaves_a_level_out(normalize):
    """Its maps are not read, and its adapter gets a gradient of 0, because DDP expects one."""
    student, teacher = pyramid(5), pyramid(6)
    student[0] = torch.full_like(student[0], math.nan)
    loss = build(5, loss_weight=[0, 1], normalize=normalize)
    losses = loss(student, teacher)
    sum(losses.values()).backward()
    assert losses['loss_rdimkd_0'] == 0 and losses['loss_rdimkd_1'] > 0
    first, second = (adapter.weight.grad for adapter in loss.adapters)
    assert first.abs().max() == 0 and second.abs().max() > 0


@pytest.mark.parametrize('weight', [0, 0.0, [0, 0]])
def test_weight__zero_is_inactive(weight):
    assert not build(loss_weight=weight).active


@pytest.mark.parametrize('weight', [-1, math.inf, math.nan, True, '1', None, [1.0], [1, -1]])
def test_weight__no_weight(weight):
    with pytest.raises(ConfigError, match='loss_weight must be a number of 0 or more, a list of 2'):
        build(loss_weight=weight)


def test_weight__auto_alone_is_refused():
    loss = build(loss_weight='auto')
    assert loss.needs_auto_weight
    with pytest.raises(RuntimeError, match="'auto' compares with the task's gradient"):
        loss(pyramid(6), pyramid(6))
    loss.note_balance(torch.tensor(3.0 / loss.auto_share))
    student, teacher = pyramid(6), pyramid(6)
    values, plain = loss(student, teacher), build()(student, teacher)
    assert all(values[name] == 3 * plain[name] for name in plain)


@pytest.mark.parametrize('resize, expected', [('student', (4, 6)), ('teacher', (8, 5))])
def test_resize__literal(resize, expected):
    loss = build(num_levels=1, normalize=None, resize=resize)
    student, teacher = torch.randn(2, 6, 8, 5), torch.randn(2, 6, 4, 6)
    moved = torch.nn.functional.interpolate(
        student if resize == 'student' else teacher, expected, mode='bilinear'
    )
    pair = (moved, teacher) if resize == 'student' else (student, moved)
    value = loss([student], [teacher])['loss_rdimkd_0']
    assert torch.equal(value, rdimkd_loss(*pair, loss.projections[0].basis))


def test_resize__same_size_changes_nothing():
    student, teacher = pyramid(6), pyramid(6)
    values, plain = build(resize='student')(student, teacher), build()(student, teacher)
    assert all(torch.equal(values[name], plain[name]) for name in plain)


def test_projection__built_ones():
    projections = [RandomProjection(2, 6), IdentityProjection(6)]
    loss = build(projection=projections)
    assert [p.basis.shape[1] for p in loss.projections] == [2, 6]


def test_projection__a_basis_per_level():
    first, second = build(dim=3).projections
    assert not torch.equal(first.basis, second.basis)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'normalize': 'l2'}, "normalize must be one of .*, got 'l2'"),
        ({'resize': 'both'}, "resize must be one of .*, got 'both'"),
        ({'momentum': 0}, r'momentum must lie in \(0, 1\], got 0'),
        ({'momentum': 1.5}, r'momentum must lie in \(0, 1\], got 1.5'),
        ({'auto_share': -1}, 'auto_share must be above 0, got -1'),
        ({'student': [6, 6, 6]}, r'student_channels must be .* got \[6, 6, 6\] for num_levels=2'),
        ({'num_levels': 0}, 'got 6 for num_levels=0'),
        ({'level_names': ['p3']}, r"level_names must be 2 names, got \['p3'\]"),
        ({'projection': {'dim': 2}}, 'projection must be a dict with a type'),
        (
            {'projection': [{'type': 'RandomProjection', 'dim': 2}]},
            'or a list of built projections',
        ),
        ({'projection': [IdentityProjection(6)]}, r'for \[6\] channels, .* have \[6, 6\]'),
        ({'projection': [IdentityProjection(5)] * 2}, r'for \[5, 5\] channels'),
        ({'dim': 7}, "dim must be .* teacher's 6 channels, got 7"),
    ],
)
def test_init__bad_argument(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_forward__wrong_number_of_levels():
    with pytest.raises(ValueError, match='expected 2 levels, got 1 maps of the student and 2'):
        build()(pyramid(6)[:1], pyramid(6))


@pytest.mark.parametrize(
    'student, teacher, message',
    [
        ((2, 5, 4, 3), (2, 6, 4, 3), r'at p4: .*expected \(N, 6, H, W\) of the student; set stu'),
        ((2, 6, 4, 3), (2, 7, 4, 3), r'\(2, 7, 4, 3\): expected \(N, 6, H, W\) of the teacher'),
        ((2, 6, 4, 3), (3, 6, 4, 3), r'\(2, 6, 4, 3\) .*\(3, 6, 4, 3\) differ in batch size'),
        ((2, 6, 4, 3), (2, 6, 4, 5), r"differ in size; set resize='student' or"),
        ((2, 6, 12), (2, 6, 12), r'expected \(N, 6, H, W\)'),
    ],
)
def test_forward__maps_that_do_not_fit(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        build(num_levels=1, level_names=['p4'])([torch.zeros(student)], [torch.zeros(teacher)])


def test_forward__not_fitted():
    loss = build(projection={'type': 'PCAProjection', 'dim': 2})
    assert not loss.fitted
    with pytest.raises(RuntimeError, match=r'at 0: PCAProjection learns .* is not fitted'):
        loss(pyramid(6), pyramid(6))


def test_state_dict__fitted_loss_into_a_fresh_one():
    options = {'projection': {'type': 'PCAProjection', 'dim': 0.6}, 'normalize': 'teacher'}
    loss, fresh = build(4, 6, **options), build(4, 6, **options)
    student, teacher = pyramid(4), pyramid(6)
    for projection, maps in zip(loss.projections, teacher):
        assert isinstance(projection, PCAProjection)
        projection.fit(torch.cov(maps.transpose(0, 1).flatten(1)))
    torch.nn.init.normal_(loss.adapters[0].bias)
    loss(student, teacher)
    fresh.load_state_dict(loss.state_dict())
    for left, right in zip(
        loss.eval()(student, teacher).values(), fresh.eval()(student, teacher).values()
    ):
        assert torch.equal(left, right)
