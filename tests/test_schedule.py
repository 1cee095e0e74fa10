"""The factor on the loss weights over a training."""

from types import SimpleNamespace

import pytest
from mmengine.dataset import InfiniteSampler
from torch.utils.data import DataLoader

from rdimkd_det import ConfigError, DistillHook, hooks
from rdimkd_det.schedule import Schedule, build_schedule


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        (dict(), [1, 1, 1, 1, 1]),
        (dict(warmup=4), [0, 0.5, 1, 1, 1]),
        (dict(stop=6), [1, 1, 1, 0, 0]),
        (dict(decay='linear'), [1, 0.75, 0.5, 0.25, 0]),
        (dict(decay='linear', decay_begin=4), [1, 1, 1, 0.5, 0]),
        (dict(decay='cosine', stop=4), [1, 0.5, 0, 0, 0]),
        (dict(warmup=4, decay='linear', decay_begin=4, stop=8), [0, 0.5, 1, 0.5, 0]),
    ],
)
def test_factor__literal(options, expected):
    schedule = Schedule(**options)
    factors = [schedule.factor(time, end=8) for time in (0, 2, 4, 6, 8)]
    assert factors == pytest.approx(expected, abs=1e-12)


def test_fade__shares_of_the_training_whatever_its_length():
    hook = DistillHook(schedule='fade')
    for length in (12, 7200):
        runner = SimpleNamespace(max_iters=length)
        shares = [0, 1 / 2, 7 / 12, 2 / 3, 1]
        factors = [hook.factor_at(runner, share * length) for share in shares]
        assert factors == pytest.approx([1, 1, 0.5, 0, 0])
        stopped = [hook.schedule.stopped(share) for share in shares]
        assert stopped == [False, False, False, True, True]


def test_stopped__only_for_good():
    assert [Schedule(stop=3).stopped(time) for time in (0, 2.9, 3, 5)] == [False, False, True, True]
    assert not Schedule(decay='linear').stopped(100)
    assert not Schedule(warmup=5).stopped(0)


def test_beyond__times_that_a_training_does_not_reach():
    schedule = Schedule(warmup=1, decay='cosine', decay_begin=8, stop=11)
    assert schedule.beyond(12) == schedule.beyond(11) == []
    assert schedule.beyond(2.5) == ['decay_begin=8', 'stop=11']


def test_apply_schedule__an_epoch_is_a_pass_over_the_data_in_several_processes(monkeypatch):
    """24 images in batches of 3 in 2 processes are 4 iterations; an infinite sampler reports 8."""
    monkeypatch.setattr(hooks, 'get_world_size', lambda: 2)
    loader = DataLoader(range(24), batch_size=3, sampler=InfiniteSampler(range(24)))
    assert len(loader) == 8
    runner = SimpleNamespace(train_loop=None, train_dataloader=loader, max_iters=100)
    factors = []
    distill = SimpleNamespace(set_factor=factors.append)
    hook = DistillHook(schedule=dict(warmup=4))
    for runner.iter in (2, 8, 16):
        hook._apply_schedule(runner, distill)
    assert factors == [0.125, 0.5, 1.0]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(decay='exponential'), "decay must be one of .* got 'exponential'"),
        (dict(warmup=-1), 'warmup must be 0 or more, got -1'),
        (dict(warmup=True), 'warmup must be 0 or more, got True'),
        (dict(decay_begin=float('nan')), 'decay_begin must be 0 or more, got nan'),
        (dict(decay_begin=1), "decay_begin=1 needs decay='linear' or 'cosine'"),
        (dict(stop='late'), "stop must be 0 or more, got 'late'"),
        (dict(warmup=3, stop=2), r'stop=2 comes before the warm-up ends \(3\)'),
        (dict(stop=3, relative=True), 'stop must be at most 1, a share of the training'),
        ('fades', "schedule must be a dict or 'fade', got 'fades'"),
        ([], r"schedule must be a dict or 'fade', got \[\]"),
        (dict(warm_up=3), "schedule has no option 'warm_up'; did you mean 'warmup'"),
    ],
)
def test_build_schedule__bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        build_schedule(options)
