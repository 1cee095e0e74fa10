"""Losses and weights that are not finite."""

import os
from pathlib import Path

import pytest
import torch
from interruptions import distributed, start
from mmdet.registry import MODELS
from mmengine.hooks import Hook
from processes import run_distributed
from runs import assert_equal, distilled, fcos, load, write_teacher

from rdimkd_det.distiller import distilled_student
from rdimkd_det.training.guard import latest_checkpoint


class Poison(Hook):
    """Makes the student's maps infinite for some iterations."""

    def __init__(self, *iterations):
        self.iterations = iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        weights = distilled_student(runner.model).distill.losses.neck.adapters[1].weight
        if runner.iter + 1 in self.iterations:
            self.kept = weights.detach().clone()
            weights.data.fill_(float('inf'))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 in self.iterations:
            model = distilled_student(runner.model)
            model.distill.losses.neck.adapters[1].weight.data.copy_(self.kept)


def test_nonfinite__stops_with_level_and_last_checkpoint(config):
    run = config()
    with pytest.raises(FloatingPointError) as stopped:
        start(run, Poison(4))
    message = str(stopped.value)
    assert message.startswith('loss_rdimkd_neck_s16 is not finite')
    assert f'The last good checkpoint is {run.work_dir}/iter_3.pth.' in message
    assert_newest_is_good(run, 3)


def assert_newest_is_good(run, iteration):
    assert latest_checkpoint(run.work_dir)[0] == f'{run.work_dir}/iter_{iteration}.pth'
    assert not Path(run.work_dir, f'iter_{iteration + 1}.pth').exists()
    state = load(Path(run.work_dir) / f'iter_{iteration}.pth')['state_dict']
    assert all(value.isfinite().all() for value in state.values())


def test_nonfinite__stops_before_a_checkpoint_hook_that_comes_first(config):
    run = config(**{'default_hooks.checkpoint.priority': 'VERY_HIGH'})
    with pytest.raises(FloatingPointError, match=r'^loss_rdimkd_neck_s16 is not finite'):
        start(run, Poison(4))
    assert_newest_is_good(run, 3)


@pytest.mark.parametrize('normalize', ['standardize', None])
def test_nonfinite__on_one_of_two_processes_stops_both(files, config, tmp_path, normalize):
    """Without 'standardize', ranks have their own losses, and rank 0, which saves, is finite."""
    run = distributed(config(model=distilled(fcos(), write_teacher(tmp_path), normalize=normalize)))

    def train_until_broken(rank):
        os.environ['LOCAL_RANK'] = str(rank)
        with pytest.raises(FloatingPointError, match=r'^loss_rdimkd_neck_s16 is not finite'):
            start(run, *([Poison(4)] if rank == 1 else []))

    run_distributed(train_until_broken, tmp_path)
    assert_newest_is_good(run, 3)


class Diverge(Hook):
    """Makes a weight NaN after an iteration, before its checkpoint is written."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            runner.model.backbone.conv1.weight.data[0] = float('nan')


@pytest.mark.parametrize('num_kept', [1, 2])
def test_nonfinite__checkpoint_of_broken_weights_is_not_called_good(config, num_kept):
    run = config(**{'default_hooks.checkpoint.max_keep_ckpts': num_kept})
    with pytest.raises(FloatingPointError) as stopped:
        start(run, Diverge(4))
    third, fourth = (f'{run.work_dir}/iter_{number}.pth' for number in (3, 4))
    expected = {
        1: f'No checkpoint is good: {fourth} and those before hold NaN or infinity. ',
        2: f'The last good checkpoint is {third} (--resume {third}): those after it hold NaN or '
        f'infinity. ',
    }
    assert expected[num_kept] in str(stopped.value)


def test_nonfinite__skip_leaves_out_the_step_and_counts(config, capsys):
    run = config()
    run.custom_hooks[0].nonfinite = 'skip'
    start(run, Poison(4, 6))
    skipped = load(Path(run.work_dir) / 'iter_12.pth')
    assert all(value.isfinite().all() for value in skipped['state_dict'].values())
    history = skipped['message_hub']['log_scalars']['train/rdimkd_skipped']
    assert history.current() == 2


def test_nonfinite__skipped_step_changes_no_weight(config):
    run = config(**{'default_hooks.checkpoint.max_keep_ckpts': -1})
    run.custom_hooks[0].nonfinite = 'skip'
    start(run, Poison(4))
    weights = [load(Path(run.work_dir) / f'iter_{number}.pth') for number in (3, 4, 5)]
    names = [name for name, _ in MODELS.build(fcos()).named_parameters()]
    for name in names:
        assert torch.equal(weights[0]['state_dict'][name], weights[1]['state_dict'][name])
    assert any(
        not torch.equal(weights[1]['state_dict'][name], weights[2]['state_dict'][name])
        for name in names
    )


class Overflow(Hook):
    """Makes all maps of the student infinite in some iterations."""

    def __init__(self, *iterations):
        self.iterations = iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 in self.iterations:
            conv = distilled_student(runner.model).backbone.conv1
            self.handle = conv.register_forward_hook(lambda *args: args[2] * float('inf'))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 in self.iterations:
            self.handle.remove()


@pytest.mark.parametrize('update_buffers', [False, True])
def test_nonfinite__skipped_step_leaves_no_trace_in_batch_norm(config, update_buffers):
    """Nor in averaged models; in half precision, one infinite value would ruin its channel."""
    run = config()
    run.custom_hooks[0].nonfinite = 'skip'
    run.custom_hooks.append(dict(type='EMAHook', update_buffers=update_buffers))
    seen = []

    class Statistics(Hook):
        def _note(self, runner, **_):
            state = runner.model.state_dict()
            seen.append({key: value.clone() for key, value in state.items() if 'running' in key})

        before_train_iter = after_train_iter = _note

    start(run, Overflow(4), Statistics())
    before, after = seen[6:8]
    assert_equal(before, after)
    last = load(Path(run.work_dir) / 'iter_12.pth')
    for state in (last['state_dict'], last['ema_state_dict']):
        assert all(value.isfinite().all() for value in state.values())


class CountSteps(Hook):
    """Records the iterations in which the optimizer takes a step."""

    def __init__(self):
        self.steps = []

    def before_train(self, runner):
        step = runner.optim_wrapper.optimizer.step

        def counted(*args, **kwargs):
            self.steps.append(runner.iter + 1)
            return step(*args, **kwargs)

        runner.optim_wrapper.optimizer.step = counted

    def after_train(self, runner):
        self.weights = dict(distilled_student(runner.model).named_parameters())


@pytest.mark.parametrize(
    ('skipped', 'steps'),
    [
        ([5], [3, 6, 9, 12]),
        ([6], [3, 6, 9, 12]),
        ([4, 5, 6], [3, 9, 12]),  # nothing was gathered
        ([12], [3, 6, 9, 12]),
    ],
)
def test_nonfinite__skipped_steps_leave_windows_of_accumulation_alone(config, skipped, steps):
    run = config(**{'optim_wrapper.accumulative_counts': 3})
    run.custom_hooks[0].nonfinite = 'skip'
    count = CountSteps()
    start(run, Overflow(*skipped), count)
    assert count.steps == steps


def test_nonfinite__skipped_end_of_a_window_keeps_processes_alike(config, tmp_path):
    run = distributed(config(**{'optim_wrapper.accumulative_counts': 2}))
    run.custom_hooks[0].nonfinite = 'skip'
    run.train_cfg.max_epochs = 1

    def train_until_the_end(rank):
        os.environ['LOCAL_RANK'] = str(rank)
        count = CountSteps()
        start(run, count, *([Overflow(2)] if rank == 1 else []))
        assert count.steps == [2, 4]
        return count.weights

    first, second = run_distributed(train_until_the_end, tmp_path)
    assert_equal(first, second)
