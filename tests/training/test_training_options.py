"""Distillation gives the same results under the host's training options as without them."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from detectors import random_batch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.model import BaseModule, convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import MODEL_WRAPPERS, RUNNERS
from mmengine.runner import Runner
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from runs import (
    assert_equal,
    call_tool,
    distilled,
    fcos,
    hidden,
    load,
    run_config,
    trained_losses,
)

from rdimkd_det import ConfigError, DistillHook
from rdimkd_det.distiller import distilled_student

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
# On another device, or in another order of summation, the last bits differ.
ROUNDING = 1e-4
# bfloat16 has 8 bits, float16 11; the losses themselves are computed in float32.
HALF_PRECISION = 0.02
RANDOM = dict(type='RandomProjection', dim=8)


@pytest.fixture(scope='module')
def teacher(files):
    folder = files / 'teacher'
    return dict(config=str(folder / 'teacher.py'), checkpoint=str(folder / 'teacher.pth'))


@pytest.fixture
def config(files, teacher, tmp_path):
    """Make the config of a run of two epochs of two iterations."""

    def config(name='run', tap='neck', **overrides):
        model = distilled(fcos(), teacher, tap)
        return run_config(files / 'data', tmp_path / name, model, **overrides)

    return config


@pytest.fixture(scope='module')
def plain(files, teacher, tmp_path_factory):
    """Return the run without any option, validated at its end."""
    cfg = run_config(
        files / 'data', tmp_path_factory.mktemp('plain'), distilled(fcos(), teacher),
        **{'train_cfg.val_interval': 2},
    )  # fmt: skip
    return run(cfg)


def run(cfg) -> Runner:
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.train()
    return runner


def assert_same_losses(runner: Runner, plain: Runner, rtol: float) -> None:
    found, expected = trained_losses(runner.work_dir), trained_losses(plain.work_dir)
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected):
        assert one == pytest.approx(other, rel=rtol)
        assert one['loss_rdimkd_neck_s8'] > 0.1


def assert_sound(runner: Runner) -> None:
    """Assert that no teacher is in the model, all parameters train, and checkpoints are plain."""
    student = distilled_student(runner.model)
    network = student.distill.teacher._network
    of_teacher = {id(x) for x in (*network.parameters(), *network.buffers(), *network.modules())}
    in_model = (*runner.model.parameters(), *runner.model.buffers(), *runner.model.modules())
    assert not of_teacher & {id(x) for x in in_model}
    trained = runner.optim_wrapper.optimizer.state
    assert not [name for name, p in runner.model.named_parameters() if p not in trained]
    checkpoint = load(Path(runner.work_dir) / 'epoch_2.pth')
    MODELS.build(fcos()).load_state_dict(checkpoint['state_dict'], strict=True)
    assert len(checkpoint['distill']) == len(student.distill.state_dict())


SYNC_BN = {'type': 'SyncBN', 'requires_grad': True}
EMA = {'type': 'EMAHook', 'ema_type': 'ExpMomentumEMA', 'momentum': 0.01, 'gamma': 2}
OPTIONS = {
    'with_cp': {'model.student.backbone.with_cp': True},
    'activation_checkpointing': {'activation_checkpointing': ['backbone.layer3']},
    'sync_bn': {'model.student.backbone.norm_cfg': SYNC_BN, 'sync_bn': 'torch'},
    'ema': {'custom_hooks': [dict(type='DistillHook', calibration_images=8), EMA]},
    'find_unused_parameters': {'find_unused_parameters': False},
    'flexible_runner': {'runner_type': 'FlexibleRunner'},
}


@pytest.mark.parametrize('option', OPTIONS)
def test_option__changes_no_loss(config, plain, option):
    """Covers the options that must not change the result."""
    runner = run(config(**OPTIONS[option]))
    assert_same_losses(runner, plain, ROUNDING)
    assert_sound(runner)


def test_workers__several_in_validation(config, plain):
    cfg = config(val_dataloader=dict(num_workers=2, persistent_workers=True))
    cfg.load_from = str(Path(plain.work_dir) / 'epoch_2.pth')
    assert Runner.from_cfg(cfg).val() == plain.val()


# Mixed precision


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('normalize', [None, 'teacher', 'standardize'])
def test_autocast__losses_and_gradients(teacher, dtype, normalize):
    loss = dict(projection=RANDOM, normalize=normalize)
    model = MODELS.build(distilled(fcos(), teacher, **loss)).train()
    data = model.data_preprocessor(random_batch(num_classes=3), training=True)
    found = {}
    for name, precision in (('full', nullcontext()), ('half', torch.autocast('cpu', dtype))):
        twin = copy.deepcopy(model)
        with precision:
            losses = twin(**data, mode='loss')
            total, logged = twin.parse_losses(losses)
        assert all(value.dtype == torch.float32 for key, value in losses.items() if 'rdimkd' in key)
        total.backward()
        assert all(p.grad.isfinite().all() for p in twin.parameters())
        found[name] = {key: value.item() for key, value in logged.items()}
    assert found['half'] == pytest.approx(found['full'], rel=HALF_PRECISION)


def test_amp__whole_run_in_bfloat16(config, plain):
    """mmengine requires a GPU; with its check disabled, autocast works the same on the CPU."""
    cfg = config(optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16'))
    with mock.patch.object(amp_optimizer_wrapper, 'is_cuda_available', return_value=True):
        runner = run(cfg)
    assert_same_losses(runner, plain, HALF_PRECISION)
    assert_sound(runner)


@needs_gpu
@pytest.mark.cuda
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_amp__whole_run_on_a_gpu(config, plain, dtype):
    runner = run(config(optim_wrapper=dict(type='AmpOptimWrapper', dtype=dtype)))
    assert_same_losses(runner, plain, HALF_PRECISION)
    assert_sound(runner)


# The optimizer's step


def step_of(model, batches, **options) -> dict:
    """Return how one step of SGD with learning rate 1 changes each parameter."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), **options)
    wrapper.initialize_count_status(model, 0, len(batches))
    for batch in batches:
        model.train_step(batch, wrapper)
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize('normalize', [None, 'standardize'])
def test_accumulation__is_the_mean_of_the_batches(teacher, normalize):
    loss = dict(projection=RANDOM, normalize=normalize)
    model = MODELS.build(distilled(fcos(), teacher, **loss)).train()
    batches = [random_batch(seed=seed, num_classes=3) for seed in (1, 2)]
    single = [step_of(copy.deepcopy(model), [batch]) for batch in batches]
    found = step_of(copy.deepcopy(model), batches, accumulative_counts=2)
    assert found['distill.losses.neck.adapters.0.weight'].abs().max() > 0
    for name, step in found.items():
        mean = (single[0][name] + single[1][name]) / 2
        scale = float(mean.abs().max())
        torch.testing.assert_close(step, mean, rtol=1e-4, atol=1e-5 * scale + 1e-6, msg=name)


def test_clipping__norm_is_of_student_and_adapters(teacher):
    model = MODELS.build(
        distilled(fcos(), teacher, projection=dict(type='RandomProjection', dim=8))
    )
    batch = [random_batch(num_classes=3)]
    whole = step_of(copy.deepcopy(model.train()), batch)
    clipped = step_of(model, batch, clip_grad=dict(max_norm=0.5))
    norm = float(torch.stack([step.norm() for step in whole.values()]).norm())
    assert norm > 0.5 and any(name.startswith('distill.') for name in clipped)
    for name, step in clipped.items():
        torch.testing.assert_close(step, whole[name] * 0.5 / norm, rtol=1e-3, atol=1e-6)


# Activation checkpointing


@pytest.mark.parametrize(
    'tap, modules', [('neck', 'neck'), ('backbone.layer3.0', 'backbone.layer3')]
)
def test_activation_checkpointing__that_cuts_the_gradient_is_refused(config, tap, modules):
    """mmengine uses torch's reentrant checkpointing, which runs the module without gradients."""
    with pytest.raises(ConfigError, match=rf"tap '{tap}': its feature maps carry no gradient"):
        run(config(tap=tap, activation_checkpointing=modules))


@pytest.mark.parametrize('how', ['with_cp', 'activation_checkpointing'])
@pytest.mark.parametrize('tap', ['backbone', 'backbone.layer2'])
def test_auto_weight__before_what_is_checkpointed(teacher, tap, how):
    """The task's gradient comes through blocks whose checkpoints know `backward()` alone."""
    weights = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        student = fcos()
        student.backbone.with_cp = checkpointed and how == 'with_cp'
        loss = dict(projection=RANDOM, loss_weight='auto')
        model = MODELS.build(distilled(student, teacher, tap, **loss)).train()
        if checkpointed and how == 'activation_checkpointing':
            turn_on_activation_checkpointing(model, 'backbone.layer3')
        data = model.data_preprocessor(random_batch(num_classes=3), training=True)
        model.parse_losses(model(**data, mode='loss'))[0].backward()
        (loss,) = model.distill.losses.values()
        weights.append(loss.auto_weight.item())
    assert weights[1] == pytest.approx(weights[0], rel=ROUNDING)


def test_tap__that_is_frozen_is_refused(config):
    cfg = config(tap='backbone.layer1', **{'model.student.backbone.frozen_stages': 1})
    with pytest.raises(ConfigError, match='frozen'):
        run(cfg)


# Compilation


@MODELS.register_module()
class MeanHead(BaseModule):
    """A head that compiles quickly and has a graph break, like real heads."""

    def __init__(self, **kwargs) -> None:
        super().__init__()

    def loss(self, feats, batch_data_samples) -> dict:
        torch._dynamo.graph_break()
        return {'loss_cls': sum(maps.square().mean() for maps in feats)}


@pytest.mark.slow
def test_compile__taps_that_come_and_go(teacher):
    """A schedule may start without distillation, so torch.compile traces that case first."""
    student = fcos()
    student.bbox_head = dict(type='MeanHead')
    model = MODELS.build(distilled(student, teacher, projection=RANDOM)).train()
    inputs = torch.randn(2, 3, 64, 96)
    model.distill.teacher.build()  # as DistillHook does before training
    compiled = torch.compile(model.loss, backend='eager')
    for factor in (0.0, 1.0, 0.5, 0.0, 1.0):
        model.distill.set_factor(factor)
        losses, expected = compiled(inputs, None), model.loss(inputs, None)
        assert losses.keys() == expected.keys() and len(losses) == 4
        assert (losses['loss_rdimkd_neck_s8'] > 0) == (factor > 0)
        for name, value in losses.items():
            torch.testing.assert_close(value, expected[name], rtol=ROUNDING, atol=0)


# Averages and ensembles of the student


def test_ema__average_holds_no_teacher(config):
    runner = run(config(**OPTIONS['ema']))
    average = next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model
    student = distilled_student(runner.model)
    assert average.module.distill.teacher is student.distill.teacher
    of_teacher = {id(x) for x in student.distill.teacher._network.modules()}
    assert not of_teacher & {id(module) for module in average.modules()}
    assert not any('distill' in key for key in average.state_dict())
    for name, parameter in average.module.named_parameters():
        assert parameter.shape == dict(student.named_parameters())[name].shape
    assert not torch.equal(average.module.neck.fpn_convs[0].conv.weight,
                           student.neck.fpn_convs[0].conv.weight)  # fmt: skip


def test_tta__averages_the_student_alone(teacher):
    """Merged predictions on flipped and unflipped images equal the plain student's.

    The teacher's files are hidden.
    """
    merging = ConfigDict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=9)
    tta = dict(type='DetTTAModel', tta_cfg=merging)
    with hidden(*teacher.values()):
        model = MODELS.build(dict(tta, module=distilled(fcos(), teacher))).eval()
        plain = MODELS.build(dict(tta, module=fcos())).eval()
        plain.load_state_dict(model.state_dict(), strict=True)
        batches = [random_batch(num=1, num_classes=3, seed=0) for _ in range(2)]
        batches[1]['inputs'] = [image.flip(-1) for image in batches[1]['inputs']]
        batches[1]['data_samples'][0].set_metainfo(dict(flip=True, flip_direction='horizontal'))
        data = {key: [batch[key] for batch in batches] for key in batches[0]}
        with torch.no_grad():
            found, expected = (m.test_step(copy.deepcopy(data))[0] for m in (model, plain))
    assert len(found.pred_instances) > 0
    assert_equal(dict(found.pred_instances.items()), dict(expected.pred_instances.items()))


# SyncBN


def test_sync_bn__converts_the_student_and_not_the_teacher(teacher):
    model = MODELS.build(
        distilled(fcos(), teacher, projection=dict(type='RandomProjection', dim=8))
    )
    model = model.train()
    data = model.data_preprocessor(random_batch(num_classes=3), training=True)
    expected = copy.deepcopy(model)(**data, mode='loss')
    converted = convert_sync_batchnorm(model)
    assert converted is model
    losses = converted(**data, mode='loss')
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name])
    kinds = {type(module) for module in model.modules()}
    assert torch.nn.SyncBatchNorm in kinds and torch.nn.BatchNorm2d not in kinds
    network = model.distill.teacher._network
    assert torch.nn.SyncBatchNorm not in {type(module) for module in network.modules()}


# FlexibleRunner


def test_flexible_runner__resumes_like_the_runner(config, plain):
    first = config(runner_type='FlexibleRunner')
    first.train_cfg.max_epochs = 1
    run(first)
    runner = run(config(runner_type='FlexibleRunner', resume=True))
    checkpoints = [load(Path(r.work_dir) / 'epoch_2.pth') for r in (runner, plain)]
    for part in ('state_dict', 'distill'):
        assert_equal(*(checkpoint[part] for checkpoint in checkpoints))


@pytest.mark.parametrize(
    'sharded',
    [
        dict(runner_type='FlexibleRunner', strategy=dict(type='FSDPStrategy')),
        dict(runner_type='FlexibleRunner', strategy=dict(type='DeepSpeedStrategy', zero=2)),
        dict(model_wrapper_cfg=dict(type='MMFullyShardedDataParallel')),
    ],
    ids=['fsdp', 'deepspeed', 'wrapper'],
)
def test_sharding__is_refused_in_one_line_before_anything_is_written(
    config, tmp_path, capsys, sharded
):
    cfg = config(**sharded)
    cfg.dump(tmp_path / 'sharded.py')
    with pytest.raises(SystemExit) as stop:
        call_tool('train.py', tmp_path / 'sharded.py')
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith('train.py: ') and 'every rank must hold them whole' in line
    assert not Path(cfg.work_dir).exists()


@pytest.mark.parametrize('wrapper', ['MMFullyShardedDataParallel', 'MMDeepSpeedEngineWrapper'])
def test_sharding__is_refused_by_the_hook_as_well(wrapper):
    """For configs that no tool has checked. FSDP itself cannot be built without a GPU."""
    kind = MODEL_WRAPPERS.get(wrapper)
    runner = SimpleNamespace(model=kind.__new__(kind))
    with pytest.raises(ConfigError, match=f'{wrapper}: .* Train with DDP'):
        DistillHook().before_train(runner)
