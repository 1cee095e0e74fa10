"""A distilled student is still the student, and contains nothing of the teacher."""

import copy
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import random_batch
from mmdet.models import FCOS
from mmdet.registry import MODELS
from mmengine.optim import OptimWrapper
from mmengine.runner import set_random_seed
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from runs import assert_equal, distilled, fcos, hidden, write_teacher
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rdimkd_det import ConfigError, RdimKDDistiller

RANDOM = dict(type='RandomProjection', dim=8)
PLAIN_LOSSES = ['loss_cls', 'loss_bbox', 'loss_centerness']


@pytest.fixture
def teacher(tmp_path):
    return write_teacher(tmp_path)


@pytest.fixture
def build(teacher):
    """Build a distilled student in training mode; the options are those of the loss."""

    def build(tap='neck', student=None, projection=RANDOM, **loss):
        model = distilled(student or fcos(), teacher, tap, projection=projection, **loss)
        return MODELS.build(model).train()

    return build


def batch_losses(model: nn.Module, **options) -> dict:
    """Return the losses of a random batch, computed as in ``train_step``."""
    data = model.data_preprocessor(random_batch(num_classes=3, **options), training=True)
    return model(**data, mode='loss')


def flat_sum(losses: dict) -> torch.Tensor:
    return sum(sum(value) if isinstance(value, list) else value for value in losses.values())


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# What it is


@pytest.mark.smoke
def test_distiller__is_the_student(build):
    plain, model = MODELS.build(fcos()), build()
    assert isinstance(model, FCOS) and isinstance(model, RdimKDDistiller)
    assert vars(plain).keys() == vars(model).keys()
    names = [name for name, _ in model.named_parameters() if not name.startswith('distill.')]
    assert names == [name for name, _ in plain.named_parameters()]
    children = [name for name, _ in model.named_children()]
    assert children == [*(name for name, _ in plain.named_children()), 'distill']
    adapters = [name for name, _ in model.named_parameters() if name.startswith('distill.')]
    assert len(adapters) == 6 and all('.adapters.' in name for name in adapters)


def test_distiller__takes_built_student(teacher):
    student = MODELS.build(fcos())
    losses = dict(neck=dict(type='RdimKDLoss', projection=RANDOM))
    assert RdimKDDistiller(student=student, teacher=teacher, losses=losses) is student
    with pytest.raises(ConfigError, match='is distilled already'):
        RdimKDDistiller(student=student, teacher=teacher, losses=losses)


@pytest.mark.parametrize('missing', ['student', 'teacher', 'losses'])
def test_distiller__missing_argument(teacher, missing):
    model = distilled(fcos(), teacher)
    del model[missing]
    with pytest.raises(ConfigError, match=rf'model\.{missing} is missing'):
        MODELS.build(model)
    with pytest.raises(ConfigError, match=rf'model\.{missing} must be a dict.* got 5'):
        MODELS.build({**distilled(fcos(), teacher), missing: 5})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(teacher=['a.py']), r"must be a dict or a list of dicts, got \['a.py'\]"),
        (dict(teacher=[dict(config='x', losses={})]), r'losses must be a dict, e\.g\..*; got {}'),
        (dict(labels='no'), "labels must be True or False, got 'no'"),
    ],
)
def test_distiller__wrong_argument(teacher, change, message):
    with pytest.raises(ConfigError, match=message):
        MODELS.build({**distilled(fcos(), teacher), **change})


def test_distiller__two_students_of_one_class_stay_apart(build):
    first, second = build(), build(tap='backbone')
    assert type(first) is type(second)
    assert first.distill.taps == ['neck'] and second.distill.taps == ['backbone']
    assert type(MODELS.build(fcos())) is FCOS


# The teacher is a guest


@pytest.mark.smoke
def test_teacher__is_nowhere_in_the_model(build):
    model = build()
    batch_losses(model)
    network = model.distill.teacher._network
    assert model.distill.teacher.built
    of_teacher = {id(x) for x in (*network.parameters(), *network.buffers(), *network.modules())}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    in_groups = [p for group in optimizer.param_groups for p in group['params']]
    tensors = [*model.state_dict(keep_vars=True).values(), *model.distill.state_dict().values()]
    everything = [*model.parameters(), *model.buffers(), *model.modules(), *in_groups, *tensors]
    assert not of_teacher & {id(x) for x in everything}
    assert not {p.data_ptr() for p in network.parameters()} & {t.data_ptr() for t in tensors}


def test_teacher__gets_no_gradient_and_stays_in_eval(build):
    model = build()
    model.train()
    before = None
    for _ in range(2):
        flat_sum(batch_losses(model)).backward()
        network = model.distill.teacher._network
        before = before or copy.deepcopy(network.state_dict())
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not any(module.training for module in network.modules())
    assert_equal(before, network.state_dict())


def test_teacher__shared_by_deepcopy_which_still_distils(build):
    model = build()
    batch_losses(model)
    twin = copy.deepcopy(model)
    assert twin.distill.teacher is model.distill.teacher
    assert twin.distill is not model.distill
    torch.manual_seed(3)
    expected = batch_losses(model)
    torch.manual_seed(3)
    losses = batch_losses(twin)
    assert losses.keys() == expected.keys()
    assert flat_sum(losses).item() == flat_sum(expected).item()
    flat_sum(losses).backward()
    assert twin.backbone.conv1.weight.grad is not None
    assert model.backbone.conv1.weight.grad is None


def test_pickle__still_distils_and_leaves_the_teacher_out(build, tmp_path):
    torch.manual_seed(3)
    model = build()
    expected = batch_losses(model)
    torch.save(model, tmp_path / 'model.pth')  # with pickle's protocol 2
    for again in (
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / 'model.pth', weights_only=False),
    ):
        assert type(again) is type(model)
        assert model.distill.teacher.built and not again.distill.teacher.built
        assert_equal(again.state_dict(), model.state_dict())
        assert not [key for key in again.state_dict() if 'distill' in key]
        again.load_state_dict(model.state_dict())
        losses = batch_losses(again)
        assert again.distill.teacher.built and losses.keys() == expected.keys()
        assert flat_sum(losses).item() == flat_sum(expected).item()


def test_pickle__of_a_student_whose_teacher_is_gone(teacher):
    model = MODELS.build(distilled(fcos(), dict(teacher, config='gone.py')))
    again = pickle.loads(pickle.dumps(model))
    assert_equal(again.state_dict(), model.state_dict())
    with pytest.raises(ConfigError, match=r'gone\.py'):
        batch_losses(again)


def test_teacher__built_in_training_only(build, teacher):
    model = build().eval()
    data = model.data_preprocessor(random_batch(num_classes=3))
    with torch.no_grad():
        model(**data, mode='predict')
        model(**data, mode='tensor')
    assert not model.distill.teacher.built
    batch_losses(model.train())
    assert model.distill.teacher.built


def test_teacher__built_without_drawing_random_numbers(build):
    model = build()
    before = torch.get_rng_state()
    model.distill.teacher.build()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('gone', ['config', 'checkpoint'])
def test_teacher__file_gone(build, teacher, gone):
    expected = build().eval()
    with hidden(teacher[gone]):
        model = build().eval()
        model.load_state_dict(expected.state_dict(), strict=True)
        batch = random_batch(num_classes=3)
        with torch.no_grad():
            ours, theirs = model.test_step(batch), expected.test_step(batch)
        for one, other in zip(ours, theirs):
            assert_equal(dict(one.pred_instances.items()), dict(other.pred_instances.items()))
        with pytest.raises(ConfigError, match=Path(teacher[gone]).name):
            batch_losses(model.train())


# Its losses


@pytest.mark.smoke
def test_loss__adds_to_plain_losses(build):
    model = build()
    plain = MODELS.build(fcos()).train()
    plain.load_state_dict(model.state_dict(), strict=True)
    expected, losses = batch_losses(plain), batch_losses(model)
    assert list(expected) == PLAIN_LOSSES
    added = [f'loss_rdimkd_neck_s{stride}' for stride in (8, 16, 32)]
    assert list(losses) == [*PLAIN_LOSSES, *added]
    assert_equal(expected, {name: losses[name] for name in PLAIN_LOSSES})
    assert all(losses[name].dim() == 0 and losses[name] > 0.1 for name in added)
    assert_equal(
        dict(plain.backbone.named_buffers()), dict(model.backbone.named_buffers())
    )  # the student ran once


@pytest.mark.smoke
def test_loss__gradient_reaches_student_and_adapters(build):
    model = build()
    losses = batch_losses(model)
    sum(value for name, value in losses.items() if 'rdimkd' in name).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(('backbone.', 'neck.', 'distill.')):
            # Standardised directions do not feel a constant.
            assert parameter.grad is not None, name
            assert name.endswith('bias') or parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_loss__is_weighted(build):
    models = [build(loss_weight=weight) for weight in (1.0, 2.5)]
    models[1].load_state_dict(models[0].state_dict())
    one, other = (batch_losses(model) for model in models)
    for name in one:
        factor = 2.5 if 'rdimkd' in name else 1.0
        torch.testing.assert_close(other[name], factor * one[name])


def test_loss__leaves_no_hook(build, monkeypatch):
    model = build()
    batch_losses(model)
    before = hook_count(model)
    assert before == hook_count(MODELS.build(fcos())) and hook_count(
        model.distill.teacher._network
    ) == hook_count(MODELS.build(fcos()).backbone)
    with monkeypatch.context() as patch:
        patch.setattr(model.bbox_head, 'loss', lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batch_losses(model)
    assert hook_count(model) == before
    assert len(batch_losses(model)) == 6


def test_loss__not_finite_names_level(build):
    model = build()
    with torch.no_grad():
        model.neck.fpn_convs[1].conv.weight.fill_(float('nan'))
    with pytest.raises(FloatingPointError, match='loss_rdimkd_neck_s16 is not finite'):
        batch_losses(model)


class Numbers(TorchDispatchMode):
    """Counts conversions of a tensor to a number or bool, for which the host awaits the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):
    """Counts conversions of a tensor to a list, which dispatch no operation on a CPU."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.Tensor.tolist
        return func(*args, **(kwargs or {}))


def waits(model: nn.Module) -> int:
    """Count how often a step's forward and backward pass wait for the device."""
    with Numbers() as numbers, Lists() as lists:
        flat_sum(batch_losses(model)).backward()
    return numbers.count + lists.count


@pytest.mark.parametrize('loss_weight', [1.0, 'auto'])
@pytest.mark.parametrize('normalize', ['standardize', 'teacher', None])
def test_loss__waits_for_the_device_as_often_as_the_plain_student(build, normalize, loss_weight):
    model, plain = build(normalize=normalize, loss_weight=loss_weight), MODELS.build(fcos()).train()
    plain.load_state_dict(model.state_dict())
    while model.distill.measures_balance:
        batch_losses(model)
    batch_losses(model)
    expected = waits(plain)
    assert waits(model) == expected + 1 > 1
    model.distill.finite.deferred = True  # as DistillHook has it
    assert waits(model) == expected


def test_loss__same_channels_need_no_adapter(build):
    model = build(student=fcos(fpn_channels=24))
    assert not list(model.distill.parameters())
    assert len(batch_losses(model)) == 6


def test_loss__adapter_maps_student_to_teacher(build):
    model = build()
    loss = model.distill.losses['neck']
    assert [tuple(a.weight.shape) for a in loss.adapters] == [(24, 16, 1, 1)] * 3


def test_loss__backbone_tap_with_channels_per_level(build):
    model = build(tap='backbone')
    losses = batch_losses(model)
    assert [name for name in losses if 'rdimkd' in name] == [
        f'loss_rdimkd_backbone_s{stride}' for stride in (4, 8, 16, 32)
    ]
    loss = model.distill.losses['backbone']
    assert loss.student_channels == [8, 16, 32, 64]
    assert loss.teacher_channels == [16, 32, 64, 128]
    # Backbone only: the teacher's neck is not even built.
    assert not hasattr(model.distill.teacher._network, 'neck')
    flat_sum(losses).backward()
    assert model.backbone.conv1.weight.grad.abs().max() > 0


def test_loss__teacher_module_taps_elsewhere(build):
    model = build(student=fcos(fpn_channels=24), teacher_module='backbone.layer2')
    losses = batch_losses(model)
    assert [name for name in losses if 'rdimkd' in name] == ['loss_rdimkd_neck_s8']
    assert model.distill.losses['neck'].teacher_channels == [32]


def test_loss__two_taps(teacher):
    model = distilled(fcos(), teacher, projection=RANDOM)
    model['losses']['backbone.layer3'] = dict(model['losses']['neck'], loss_weight=0.5)
    model = MODELS.build(model).train()
    losses = batch_losses(model)
    assert [name for name in losses if 'rdimkd' in name] == [
        *(f'loss_rdimkd_neck_s{stride}' for stride in (8, 16, 32)),
        'loss_rdimkd_backbone.layer3_s16',
    ]


def test_loss__teacher_padding_of_its_own(tmp_path):
    """A teacher that pads to 64 gives larger maps for a batch of 96x160; they are cropped."""
    model = fcos(base_channels=16, fpn_channels=24)
    teacher = write_teacher(tmp_path)
    text = Path(teacher['config']).read_text()
    Path(teacher['config']).write_text(text.replace('pad_size_divisor=32', 'pad_size_divisor=64'))
    assert 'pad_size_divisor=64' in Path(teacher['config']).read_text()
    model = MODELS.build(distilled(fcos(), teacher, projection=RANDOM)).train()
    losses = batch_losses(model, size=(90, 150))
    assert all(value.isfinite() for value in losses.values()) and len(losses) == 6


# Mistakes that show when it is built


@pytest.mark.parametrize(
    'loss, message',
    [
        (dict(type='RdimKDLos'), "unknown type 'RdimKDLos'; did you mean 'RdimKDLoss'"),
        (
            dict(projection=dict(type='PCAProjektion')),
            r"losses\.neck\.projection: unknown type .* did you mean 'PCAProjection'",
        ),
        (
            dict(projection=dict(type='PCAProjection', dims=8)),
            "PCAProjection.* has no option 'dims'; did you mean 'dim'",
        ),
        (dict(projection=dict(dim=8)), 'must be a dict with a type'),
        (dict(projection=dict(type='RandomProjection', dim=0)), 'from 1 to .* 24 channels, got 0'),
        (dict(projection=dict(type='RandomProjection', dim=25)), 'got 25'),
        (dict(student_channels=99), r'student_channels=99 contradicts .*\[16, 16, 16\]'),
        (dict(teacher_channels=[24, 24]), r'teacher_channels=\[24, 24\] contradicts'),
        (dict(num_levels=4), 'num_levels=4 contradicts the model.* 3; leave it out'),
        (dict(teacher_module='head'), "tap 'head': .* it has 'backbone', 'neck'"),
        (
            dict(teacher_module='backbone.layer1'),
            r'student has strides \[8, 16, 32\].*teacher \[4\]',
        ),
        (dict(normalise='teacher'), "no option 'normalise'; did you mean 'normalize'"),
    ],
)
def test_distiller__wrong_loss(build, loss, message):
    with pytest.raises(ConfigError, match=message):
        build(**loss)


def test_distiller__wrong_loss_of_one_of_several_teachers(teacher):
    model = distilled(fcos(), teacher)
    model.teacher = [teacher, dict(teacher, losses=dict(neck=dict(type='RdimKDLos')))]
    with pytest.raises(ConfigError, match="did you mean 'RdimKDLoss'"):
        MODELS.build(model)


def test_distiller__right_channels_may_be_given(build):
    model = build(student_channels=16, teacher_channels=[24, 24, 24], num_levels=3)
    assert model.distill.losses['neck'].num_levels == 3


@pytest.mark.parametrize('tap', ['nck', 'backbone.layer9'])
def test_distiller__unknown_tap_lists_modules(build, tap):
    with pytest.raises(ConfigError, match=rf"tap '{tap}': .*'backbone', 'neck', 'bbox_head'"):
        build(tap=tap)


def test_distiller__tap_without_maps(build):
    with pytest.raises(ConfigError, match="tap 'bbox_head' gives no feature maps"):
        build(tap='bbox_head', teacher_module='neck')


# Off means off


def three_steps(model: dict) -> dict:
    """Return losses, gradients, weights and random states of three steps with clipping."""
    set_random_seed(7)
    model = MODELS.build(model)
    model.init_weights()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=0.5))
    found = {}
    for step in range(3):
        # Noise from each of the three generators is a part of every step.
        seed = random.randrange(1000) + np.random.randint(1000) + torch.randint(1000, ()).item()
        data = model.data_preprocessor(random_batch(seed=seed, num_classes=3), training=True)
        loss, log = model.parse_losses(model(**data, mode='loss'))
        wrapper.update_params(loss)
        found.update({f'{step} {name}': value for name, value in log.items()})
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.update({f'{step} grad {name}': grad.clone() for name, grad in grads.items()})
    found.update(model.state_dict())
    found['torch'] = torch.get_rng_state()
    found['numpy'] = torch.from_numpy(np.random.get_state()[1].astype(np.int64))
    found['python'] = torch.tensor(random.getstate()[1])
    return found, model


@pytest.mark.smoke
@pytest.mark.parametrize('fpn_channels', [16, 24], ids=['adapter', 'no_adapter'])
def test_off__is_plain_mmdet_bit_for_bit(teacher, fpn_channels):
    student = fcos(fpn_channels=fpn_channels)
    pca = dict(type='PCAProjection', dim=8)
    off = distilled(copy.deepcopy(student), teacher, projection=pca, loss_weight=0)
    expected, _ = three_steps(student)
    found, model = three_steps(off)
    names = [name for name in found if 'rdimkd' not in name]
    assert names == list(expected)
    assert_equal(expected, {name: found[name] for name in names})
    assert not model.distill.teacher.built
    assert not any(p.requires_grad for p in model.distill.parameters())


def test_on__initialises_student_as_plain(teacher):
    """Distillation that is on does not consume the student's random numbers either."""
    states = []
    for model in (fcos(), distilled(fcos(), teacher, projection=RANDOM)):
        set_random_seed(7)
        model = MODELS.build(model)
        model.init_weights()
        states.append({**model.state_dict(), 'random': torch.get_rng_state()})
    assert_equal(*states)


# Every checkpoint is a student checkpoint


@pytest.mark.smoke
def test_state_dict__is_the_plain_students(build):
    model, plain = build(), MODELS.build(fcos())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert list(get_state_dict(model)) == list(plain.state_dict())
    assert len(model.distill.state_dict()) > 0


@pytest.mark.parametrize(
    'load',
    [
        lambda model, state: model.load_state_dict(state, strict=True),
        lambda model, state: load_state_dict(model, state, strict=True),
    ],
    ids=['torch', 'mmengine'],
)
def test_state_dict__loads_both_ways(build, load):
    model, plain = build(), MODELS.build(fcos())
    load(plain, get_state_dict(model))
    assert_equal(plain.state_dict(), model.state_dict())
    again = build()
    distillation = copy.deepcopy(again.distill.state_dict())
    load(again, plain.state_dict())
    assert_equal(again.state_dict(), model.state_dict())
    assert_equal(again.distill.state_dict(), distillation)


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
def test_state_dict__strict_still_finds_real_mistakes(build, load):
    model = build()
    state = model.state_dict()
    del state['backbone.conv1.weight']
    with pytest.raises(RuntimeError, match=r'backbone\.conv1\.weight'):
        load(model, state, strict=True)
    with pytest.raises(RuntimeError, match='extra'):
        load(model, {**model.state_dict(), 'extra': torch.zeros(1)}, strict=True)


def test_state_dict__of_a_wrapper_hides_distillation_too(build):
    wrapper = nn.Sequential(build())
    assert not any('distill' in key for key in wrapper.state_dict())
    wrapper.load_state_dict(wrapper.state_dict(), strict=True)
