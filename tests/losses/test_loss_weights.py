"""Loss weights: per stride, balanced, scheduled; and several teachers."""

from copy import deepcopy

import pytest
import torch
from detectors import random_batch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from processes import run_distributed
from runs import distilled, fcos, load, run_config, train, trained_losses, write_data, write_teacher

from rdimkd_det import ConfigError, RdimKDLoss
from rdimkd_det.losses import auto_weight
from rdimkd_det.losses.auto_weight import gradient_balance, has_objects, note_balance
from rdimkd_det.losses.level_weights import BALANCE_BATCHES

RANDOM = dict(type='RandomProjection', dim=8)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    write_data(folder / 'data')
    return folder


@pytest.fixture(scope='module')
def teacher(files):
    return write_teacher(files / 'teacher')


def losses_of(model, data=None):
    if data is None:
        data = model.data_preprocessor(random_batch(num_classes=3), training=True)
    return model(**data, mode='loss')


def test_loss_weight__by_stride(teacher):
    torch.manual_seed(3)
    plain = MODELS.build(distilled(fcos(), teacher, projection=RANDOM)).train()
    torch.manual_seed(3)
    weights = {8: 2.0, 16: 0.0, 32: 0.5}
    weighted = MODELS.build(distilled(fcos(), teacher, projection=RANDOM, loss_weight=weights))
    expected, found = losses_of(plain), losses_of(weighted.train())
    for stride, weight in weights.items():
        key = f'loss_rdimkd_neck_s{stride}'
        torch.testing.assert_close(found[key], weight * expected[key])


def test_loss_weight__strides_that_are_not_there(teacher):
    with pytest.raises(
        ConfigError, match=r'strides \[4, 8\], the common levels have \[8, 16, 32\]'
    ):
        MODELS.build(distilled(fcos(), teacher, loss_weight={4: 1, 8: 1}))
    with pytest.raises(
        ConfigError, match=r"strides \['p3'\], the common levels have \[8, 16, 32\]"
    ):
        MODELS.build(distilled(fcos(), teacher, loss_weight={'p3': 1}))


def test_gradient_balance__literal():
    maps = torch.ones(2, 3, requires_grad=True)
    assert gradient_balance(6 * maps.sum(), 2 * maps.sum(), [maps]).item() == pytest.approx(3)
    assert gradient_balance(6 * maps.sum(), 0 * maps.sum(), [maps]).item() == 1
    frozen = torch.ones(2, 3)
    assert gradient_balance(6 * maps.sum(), 2 * (maps + frozen).sum(), [maps, frozen]).item() == 3
    assert gradient_balance(6 * maps.sum(), 2 * frozen.sum(), [maps, frozen]).item() == 1


def test_auto__balances_gradients_at_the_tap(teacher):
    loss = dict(projection=RANDOM, loss_weight='auto', auto_share=0.5)
    model = MODELS.build(distilled(fcos(), teacher, **loss)).train()
    maps = []
    model.neck.register_forward_hook(lambda *args: maps.append(args[2]))
    losses = losses_of(model)
    weight = model.distill.losses.neck.auto_weight.item()
    assert weight > 0
    distilling = [value for key, value in losses.items() if 'rdimkd' in key]
    task = model.parse_losses({k: v for k, v in losses.items() if 'rdimkd' not in k})[0]

    def norm(total):
        grads = torch.autograd.grad(total, maps[0], retain_graph=True, allow_unused=True)
        return torch.cat([grad.flatten() for grad in grads if grad is not None]).norm()

    assert (norm(sum(distilling)) / norm(task)).item() == pytest.approx(0.5, rel=1e-4)


def balances(seed):
    return 10 ** torch.randn(BALANCE_BATCHES, generator=torch.Generator().manual_seed(seed))


def auto_loss(**options):
    channels = dict(student_channels=4, teacher_channels=4, num_levels=1)
    options = dict(loss_weight='auto', **channels) | options
    return RdimKDLoss(dict(type='RandomProjection'), **options)


def test_auto__median_of_ten_batches_then_fixed():
    loss, measured = auto_loss(), balances(0)
    for number, balance in enumerate(measured, 1):
        assert loss.measures_balance
        loss.note_balance(balance)
        assert loss.auto_weight == 10 * measured[:number].median()
    assert not loss.measures_balance


def test_auto__resumed_between_the_ten_batches():
    loss, measured = auto_loss(), balances(1)
    for balance in measured[:4]:
        loss.note_balance(balance)
    resumed = auto_loss()
    resumed.load_state_dict(loss.state_dict())
    for balance in measured[4:]:
        assert resumed.measures_balance
        resumed.note_balance(balance)
    assert resumed.auto_weight == 10 * measured.median() and not resumed.measures_balance


def test_auto__of_an_earlier_version_is_kept():
    """It had one measurement, and no 'balances' in its checkpoints."""
    loss = auto_loss(auto_share=1.0)
    state = {**loss.state_dict(), 'auto_weight': torch.tensor(0.25)}
    del state['balances']
    loss.load_state_dict(state, strict=True)
    assert loss.auto_weight == 0.25 and not loss.measures_balance


def test_resume__weight_and_share_of_the_config_count():
    """Bases and adapters are those of the checkpoint; a weight may change between runs."""
    measured, number = auto_loss(), auto_loss(loss_weight=2.0)
    measured.note_balance(torch.tensor(3.0))
    other_share = auto_loss(auto_share=20.0)
    other_share.load_state_dict(measured.state_dict())
    assert other_share.auto_weight == 60 and other_share.num_balances == 1
    to_measure = auto_loss()
    to_measure.load_state_dict(number.state_dict())
    assert to_measure.needs_auto_weight
    number.load_state_dict(measured.state_dict())
    assert number.auto_weight == 1 and not number.measures_balance


def test_auto__waits_for_a_batch_with_objects(teacher):
    loss = dict(projection=RANDOM, loss_weight='auto')
    model = MODELS.build(distilled(fcos(), teacher, **loss)).train()
    data = model.data_preprocessor(random_batch(num_classes=3), training=True)
    empty = dict(data, data_samples=[deepcopy(it) for it in data['data_samples']])
    for sample in empty['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
    losses_of(model, empty)
    assert model.distill.losses.neck.needs_auto_weight
    one_left = dict(data, data_samples=[empty['data_samples'][0], *data['data_samples'][1:]])
    losses_of(model, one_left)
    assert model.distill.losses.neck.num_balances == 1


def test_auto__objects_on_any_rank_are_enough(tmp_path):
    sample = DetDataSample(gt_instances=InstanceData(bboxes=torch.zeros(1, 4)))
    empty = DetDataSample(gt_instances=InstanceData(bboxes=torch.zeros(0, 4)))
    assert has_objects([empty, sample]) and not has_objects([empty])
    assert (
        run_distributed(lambda rank: has_objects([(empty, sample)[rank]]), tmp_path) == [True] * 2
    )


@pytest.mark.parametrize('balance', [1e-6, 1e6])
def test_auto__implausible(balance, monkeypatch):
    lines = []
    monkeypatch.setattr(auto_weight, 'print_log', lambda line, *where: lines.append(line))
    loss, maps = auto_loss(), torch.ones(1, requires_grad=True)
    for _ in range(BALANCE_BATCHES):
        note_balance('neck', loss, {'loss': maps.sum()}, [maps], balance * maps.sum())
    assert len(lines) == 2 and "weight 'auto' is implausible; run tools/preflight.py" in lines[1]


def test_gradient_balance__of_a_batch_that_is_not_finite():
    maps = torch.ones(2, 3, requires_grad=True)
    assert gradient_balance(maps.sum() * torch.inf, maps.sum(), [maps]).isnan()


def test_gradient_balance__of_gradients_too_small_for_half_precision():
    maps = torch.ones(2, 3, dtype=torch.float16, requires_grad=True)
    total = maps.float().sum()
    assert gradient_balance(3e-8 * total, 1e-8 * total, [maps]).item() == pytest.approx(3, rel=0.1)


def test_auto__waits_for_a_batch_that_is_finite(teacher):
    loss = dict(projection=RANDOM, loss_weight='auto')
    model = MODELS.build(distilled(fcos(), teacher, **loss)).train()
    data = model.data_preprocessor(random_batch(num_classes=3), training=True)
    broken = dict(data, inputs=data['inputs'] * torch.nan)
    model.distill.finite.deferred = True
    assert losses_of(model, broken)['loss_rdimkd_neck_s8'].isnan()
    assert model.distill.losses.neck.needs_auto_weight
    losses_of(model)
    assert 0 < model.distill.losses.neck.auto_weight.item() != 1


def test_auto__without_gradients_is_left_to_training(teacher):
    """As a user may look at the losses before the training."""
    loss = dict(projection=RANDOM, loss_weight='auto')
    model = MODELS.build(distilled(fcos(), teacher, **loss)).train()
    model.distill.set_factor(0.5)
    with torch.no_grad():
        seen = losses_of(model)
    assert model.distill.losses.neck.needs_auto_weight
    plain = MODELS.build(distilled(fcos(), teacher, projection=RANDOM)).train()
    plain.load_state_dict(model.state_dict())
    expected = losses_of(plain)
    name = 'loss_rdimkd_neck_s8'
    torch.testing.assert_close(seen[name], 0.5 * expected[name].detach())
    losses_of(model)
    assert 0 < model.distill.losses.neck.auto_weight.item() != 1


def test_auto__gradients_not_finite_keep_the_schedules_factor(teacher):
    loss = dict(projection=RANDOM, loss_weight='auto')
    model = MODELS.build(distilled(fcos(), teacher, **loss)).train()
    plain = MODELS.build(distilled(fcos(), teacher, projection=RANDOM)).train()
    plain.load_state_dict(model.state_dict())
    for each in (model, plain):
        each.distill.set_factor(0.25)
    head = model.bbox_head.loss

    def loss_of_head(feats, samples):
        root_of_zero = (feats[0] - feats[0].detach()).abs().sum().sqrt()  # has no finite gradient
        return {**head(feats, samples), 'loss_root': root_of_zero}

    model.bbox_head.loss = loss_of_head
    found, expected = losses_of(model), losses_of(plain)
    assert model.distill.losses.neck.needs_auto_weight
    name = 'loss_rdimkd_neck_s8'
    torch.testing.assert_close(found[name], expected[name])


def test_auto__kept_when_resumed(files, teacher, tmp_path):
    model = distilled(fcos(), teacher, projection=RANDOM, loss_weight='auto')
    train(run_config(files / 'data', tmp_path, model, max_epochs=1))
    measured = load(tmp_path / 'epoch_1.pth')['distill']['losses.neck.balances']
    known = int((~measured.isnan()).sum())
    assert 0 < known < BALANCE_BATCHES
    train(run_config(files / 'data', tmp_path, model, max_epochs=2, resume=True))
    found = load(tmp_path / 'epoch_2.pth')['distill']
    assert torch.equal(found['losses.neck.balances'][:known], measured[:known])
    expected = 10 * found['losses.neck.balances'].nanmedian()
    assert found['losses.neck.auto_weight'] == expected


def test_schedule__stop_frees_the_teacher(files, teacher, tmp_path):
    model = distilled(fcos(), teacher, projection=RANDOM)
    config = run_config(files / 'data', tmp_path, model, max_epochs=3)
    config.custom_hooks[0].schedule = dict(warmup=1, stop=2)
    runner = train(config)
    values = runner.message_hub.get_scalar('train/loss_rdimkd_neck_s8').data[0]
    assert [value > 0 for value in values] == [False, True, True, True, False, False]
    assert values[1] < 0.75 * values[2]  # half of the weight
    factors = runner.message_hub.get_scalar('train/rdimkd_factor').data[0]
    assert list(factors) == [0, 0.5, 1, 1, 0, 0]
    assert not runner.model.distill.teacher.built
    # A resumed training without the schedule logs its own factor.
    config = run_config(files / 'data', tmp_path, model, max_epochs=4, resume=True)
    assert train(config).message_hub.get_scalar('train/rdimkd_factor').current() == 1


def test_several_teachers__named_apart(files, teacher, tmp_path):
    other = write_teacher(tmp_path, base_channels=8, fpn_channels=16)
    own = dict(backbone=dict(type='RdimKDLoss', projection=dict(type='RandomProjection', dim=4)))
    model = distilled(fcos(), teacher)
    model.teacher = [dict(teacher, name='big'), dict(other, losses=own)]
    runner = train(run_config(files / 'data', tmp_path / 'run', model, max_epochs=1))
    keys = {key for key in trained_losses(tmp_path / 'run')[0] if 'rdimkd' in key}
    big = {f'loss_rdimkd_big_neck_s{stride}' for stride in (8, 16, 32)}
    assert keys == big | {f'loss_rdimkd_t1_backbone_s{stride}' for stride in (4, 8, 16, 32)}
    checkpoint = load(tmp_path / 'run/epoch_1.pth')
    MODELS.build(fcos()).load_state_dict(checkpoint['state_dict'], strict=True)
    assert {key.split('.')[0] for key in checkpoint['distill']} == {'0', '1'}
    assert [part.name for part in runner.model.distill.per_teacher] == ['big', 't1']


def test_several_teachers__each_tells_its_weight_auto(teacher, monkeypatch):
    lines = []
    monkeypatch.setattr(auto_weight, 'print_log', lambda line, *where: lines.append(line))
    model = distilled(fcos(), teacher, projection=RANDOM, loss_weight='auto')
    model.teacher = [dict(teacher, name='a'), dict(teacher, name='b')]
    model = MODELS.build(model).train()
    for loss in model.distill.all_losses():
        for _ in range(BALANCE_BATCHES - 1):
            loss.note_balance(torch.tensor(1.0))
    losses_of(model)
    told = [line.split("'")[3] for line in lines]
    assert told == ['a_neck', 'b_neck']


def test_several_teachers__same_name(teacher):
    model = distilled(fcos(), teacher)
    model.teacher = [dict(teacher, name='a'), dict(teacher, name='a')]
    with pytest.raises(ConfigError, match='names of the teachers must differ'):
        MODELS.build(model)
