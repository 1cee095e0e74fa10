"""Trainings that are killed and go on, and those that must not."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from interruptions import (
    BATCHES,
    EPOCHS,
    Kill,
    Stop,
    StopAfter,
    Watch,
    distributed,
    final,
    in_child,
    start,
)
from mmdet.registry import HOOKS, LOOPS
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop
from processes import run_distributed
from runs import assert_equal, call_tool, distilled, fcos, load
from torch.utils.data import DataLoader

from rdimkd_det.random_state import random_state
from rdimkd_det.training.guard import latest_checkpoint
from rdimkd_det.training.guard.data_position import DataPosition

LOADERS = [
    pytest.param(0, False, id='in_process'),
    pytest.param(2, False, id='workers'),
    pytest.param(3, True, id='persistent_workers'),
]


@pytest.mark.parametrize(('num_workers', 'persistent'), LOADERS)
def test_killed__resumes_to_the_bit(config, num_workers, persistent):
    options = dict(num_workers=num_workers, persistent=persistent)
    whole, killed = config('whole', **options), config('killed', **options)
    assert in_child(start, whole) == 0
    kills = ((3, 'after'), (5, 'saving'), (8, 'after'), (11, 'before'), (12, 'after'))
    for number, (iteration, when) in enumerate(kills):
        kill = Kill(iteration, when)
        status = in_child(lambda kill=kill, number=number: start(killed, kill, resume=number > 0))
        assert status == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(final(whole), final(killed))
    assert not list(Path(killed.work_dir).glob('.*'))  # half a checkpoint of the second kill


def test_killed__twice_before_each_worker_has_given_a_batch(config):
    whole, killed = (config(name, num_workers=3, persistent=True) for name in ('whole', 'killed'))
    assert in_child(start, whole) == 0
    for resume, iteration in enumerate((BATCHES + 1, BATCHES + 2)):
        kill = Kill(iteration, 'after')
        status = in_child(lambda kill=kill, resume=resume: start(killed, kill, resume=resume > 0))
        assert status == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(final(whole), final(killed))


@pytest.mark.parametrize('by_epoch', [False, True])
def test_killed__around_a_switch_of_the_pipeline(config, by_epoch):
    """The hook restarts persistent workers once, at the start of the second epoch."""

    def switching(name):
        options = {'default_hooks.checkpoint.by_epoch': by_epoch}
        run = config(name, num_workers=2, persistent=True, **options)
        pipeline = run.train_dataloader.dataset.pipeline
        hook = dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=pipeline)
        run.custom_hooks.append(hook)
        return run

    def end(run):
        return load(latest_checkpoint(run.work_dir)[0])['state_dict']

    whole, killed = switching('whole'), switching('killed')
    assert in_child(start, whole) == 0
    for number, iteration in enumerate([5, 9]):
        kill = Kill(iteration, 'before' if by_epoch else 'after')
        status = in_child(lambda kill=kill, number=number: start(killed, kill, resume=number > 0))
        assert status == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(end(whole), end(killed))


@pytest.mark.slow
def test_killed__ten_times_in_a_row(config):
    whole, killed = config('whole'), config('killed')
    assert in_child(start, whole) == 0
    draw = random.Random(0)
    done = 0
    for number in range(10):
        kill = Kill(min(done + draw.randint(1, 2), 12), draw.choice(['before', 'after', 'saving']))
        status = in_child(lambda kill=kill, number=number: start(killed, kill, resume=number > 0))
        assert status in (-signal.SIGKILL, 0)
        path, _ = latest_checkpoint(killed.work_dir)
        reached = load(path)['meta']['iter'] if path else 0
        assert reached >= done  # never less than before
        done = reached
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(final(whole), final(killed))


def test_killed__iteration_based_loop(config):
    whole, killed = config('whole'), config('killed')
    for each in (whole, killed):
        each.train_cfg = dict(type='IterBasedTrainLoop', max_iters=EPOCHS * BATCHES, val_interval=4)
        each.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    assert in_child(start, whole) == 0
    for number, iteration in enumerate([4, 7]):
        kill = Kill(iteration, 'after')
        status = in_child(lambda kill=kill, number=number: start(killed, kill, resume=number > 0))
        assert status == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(final(whole), final(killed))


def test_killed__between_two_sizes_of_a_batch_augmentation(config):
    """YOLOX's draws a size, for the next ten iterations by default."""
    augment = dict(type='BatchSyncRandomResize', random_size_range=(96, 128), interval=3)
    options = {'model.student.data_preprocessor.batch_augments': [augment]}
    whole, killed = config('whole', **options), config('killed', **options)
    assert in_child(start, whole) == 0
    assert in_child(lambda: start(killed, Kill(7, 'after'))) == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(final(whole), final(killed))


@LOOPS.register_module()
class OwnLoop(IterBasedTrainLoop):
    """A user's own loop, which shares only what hooks see with mmengine's loops."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = self.__dict__.pop('dataloader_iterator')

    def run(self):
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        while self._iter < self._max_iters:
            self.run_iter(next(self.batches))
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')


@HOOKS.register_module()
class Images(Hook):
    """Records the images that are trained on."""

    seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.extend(sample.img_id for sample in data_batch['data_samples'])


@pytest.mark.parametrize('num_workers', [0, 2])
def test_resume__without_a_seed_keeps_the_order_of_the_images(config, num_workers):
    """mmengine draws a seed, and restores it once the data loader is built."""
    run = config(**{'randomness.seed': None}, num_workers=num_workers)
    run.custom_hooks.append(dict(type='Images'))
    run.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    if num_workers:
        run.train_cfg = dict(type='IterBasedTrainLoop', max_iters=BATCHES)
        run.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    run.dump(Path(run.work_dir).parent / 'config.py')
    Images.seen.clear()
    with pytest.raises(Stop):
        start(run, StopAfter(2))
    call_tool('train.py', Path(run.work_dir).parent / 'config.py', '--resume')
    assert sorted(Images.seen) == list(range(8))


def test_resume__in_a_loop_of_another_kind(config):
    run = config()
    run.train_cfg = dict(type='OwnLoop', max_iters=EPOCHS * BATCHES)
    run.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    assert in_child(lambda: start(run, Kill(7, 'after'))) == -signal.SIGKILL
    watch = Watch()
    start(run, watch, resume=True)
    assert [iteration for iteration, _ in watch.seen] == [7, 8, 9, 10, 11]
    log = max(Path(run.work_dir).glob('*/*.log')).read_text()
    assert 'OwnLoop is a custom train loop' in log


def test_killed__two_processes(config, tmp_path):
    whole, killed = distributed(config('whole')), distributed(config('killed'))

    def run(rank):
        os.environ['LOCAL_RANK'] = str(rank)
        start(whole)
        with pytest.raises(Stop):
            start(killed, StopAfter(6))
        torch.distributed.barrier()  # until the checkpoint is there
        start(killed, resume=True)

    run_distributed(run, tmp_path)
    assert_equal(final(whole), final(killed))
    first, second = load(Path(killed.work_dir) / f'iter_{EPOCHS * BATCHES}.pth')['resume']
    assert (first['now']['torch'] != second['now']['torch']).any()


def test_killed__between_epochs_and_in_validation(config):
    """With checkpoints only after epochs, a validation that was cut off is repeated."""
    options = {'default_hooks.checkpoint.by_epoch': True, 'train_cfg.val_interval': 1}
    whole, killed = config('whole', **options), config('killed', **options)
    assert in_child(start, whole) == 0

    class KillInValidation(Hook):
        def before_val_iter(self, runner, batch_idx, data_batch=None):
            if runner.epoch == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: start(killed, KillInValidation())) == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    ends = [load(Path(each.work_dir) / f'epoch_{EPOCHS}.pth') for each in (whole, killed)]
    assert_equal(*(end['state_dict'] for end in ends))
    validated = [
        json.loads(line)['step']
        for path in sorted(Path(killed.work_dir).glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
        if 'bbox_mAP' in line
    ]
    assert validated == [1, 2, 3]


def test_resume__with_other_workers_still_sees_the_right_data(config):
    """Another number of workers changes the augmentations, but not the order of images."""
    seen = []

    class Watch(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            ids = [sample.img_id for sample in data_batch['data_samples']]
            seen.append((runner.iter, batch_idx, ids))

    start(config('whole'), Watch())
    whole, seen = seen, []
    killed = config('killed')
    assert in_child(lambda: start(killed, Kill(6, 'after'))) == -signal.SIGKILL
    killed.train_dataloader.num_workers = 2
    start(killed, Watch(), resume=True)
    assert seen == whole[6:]


def edit_resume_entry(path, edit):
    checkpoint = load(path)
    checkpoint['resume'] = edit(checkpoint['resume'])
    torch.save(checkpoint, path)


def as_earlier_versions_wrote(states):
    return [
        {key: value for key, value in state.items() if key not in ('batches', 'epoch_length')}
        for state in states
    ]


def test_resume__after_a_best_checkpoint_validates_no_second_time(config):
    options = {'default_hooks.checkpoint.by_epoch': True, 'train_cfg.val_interval': 1}
    run = config(**{**options, 'default_hooks.checkpoint.save_best': 'coco/bbox_mAP'})
    assert in_child(lambda: start(run, Kill(5, 'before'))) == -signal.SIGKILL
    assert list(Path(run.work_dir).glob('best_*.pth'))
    watch = Watch()
    start(run, watch, resume=True)
    assert watch.validations == 2


def test_position__that_is_saved_once_more_before_it_is_restored():
    """A validation that is run again may be the best, whose checkpoint is then written anew."""
    position = DataPosition(DataLoader(range(8), 2, num_workers=2, persistent_workers=True))
    states = [random_state(), random_state()]
    position.remember({'num_workers': 2, 'restarted': True, 'batches': 0, 'states': states})
    found = position.state(0)
    assert found['restarted'] and found['batches'] == 0
    assert [*map(id, found['states'])] == [*map(id, states)]


@pytest.mark.parametrize('edit, num_images', [(list, 4), (list, 1), (as_earlier_versions_wrote, 2)])
def test_resume__with_epochs_of_another_length_drops_none(config, edit, num_images):
    """The batch size, or number of GPUs, changes between two epochs."""
    run = config(**{'default_hooks.checkpoint.by_epoch': True, 'train_cfg.max_epochs': 1})
    start(run)
    edit_resume_entry(Path(run.work_dir) / 'epoch_1.pth', edit)
    run.train_dataloader.batch_size = num_images
    seen = []
    for max_epochs in (2, 3):
        run.train_cfg.max_epochs = max_epochs
        watch = Watch()
        start(run, watch, resume=True)
        seen += watch.seen
    each = range(8 // num_images)
    assert seen == list(zip(range(4, 4 + 2 * len(each)), [*each, *each]))


@pytest.mark.parametrize('edit', [list, as_earlier_versions_wrote])
def test_resume__within_an_epoch_of_another_length_begins_it_anew(config, edit):
    run = config(**{'train_cfg.val_interval': 1})
    assert in_child(lambda: start(run, Kill(7, 'after'))) == -signal.SIGKILL
    edit_resume_entry(Path(run.work_dir) / 'iter_7.pth', edit)
    run.train_dataloader.batch_size = 4
    run.train_cfg.max_epochs = 2
    watch = Watch()
    start(run, watch, resume=True)
    log = max(Path(run.work_dir).glob('*/*.log')).read_text()
    assert 'stands at batch 3 of an epoch of another length (now it is 2)' in log
    assert watch.seen == [(7, 0), (8, 1)]
    assert watch.validations == 1


def test_resume__of_an_epoch_that_is_over_trains_no_more_of_it(config):
    run = config(**{'train_cfg.val_interval': 1})
    assert in_child(lambda: start(run, Kill(4, 'after'))) == -signal.SIGKILL
    run.train_dataloader.batch_size = 1
    run.train_cfg.max_epochs = 2
    watch = Watch()
    start(run, watch, resume=True)
    assert watch.seen == [(4 + index, index) for index in range(8)]
    assert watch.validations == 2


def test_resume__of_earlier_versions_goes_on_in_the_epoch(config):
    whole, killed = config('whole'), config('killed')
    start(whole)
    assert in_child(lambda: start(killed, Kill(7, 'after'))) == -signal.SIGKILL
    edit_resume_entry(Path(killed.work_dir) / 'iter_7.pth', as_earlier_versions_wrote)
    start(killed, resume=True)
    assert_equal(final(whole), final(killed))


@pytest.mark.parametrize('iteration', [7, 8])
def test_resume__with_another_number_of_processes_keeps_the_place(config, iteration):
    """Both within an epoch and before a validation that was cut off."""
    by_epoch = iteration == 8
    run = config(**{'train_cfg.val_interval': 1, 'default_hooks.checkpoint.by_epoch': by_epoch})
    kill = Kill(iteration + 1, 'before')
    assert in_child(lambda: start(run, kill)) == -signal.SIGKILL
    path = latest_checkpoint(run.work_dir)[0]

    def of_two_processes(states):
        return [{**states[0], 'validated': False}] * 2

    edit_resume_entry(Path(path), of_two_processes)
    watch = Watch()
    start(run, watch, resume=True)
    assert watch.seen == [(index, index % 4) for index in range(iteration, 12)]
    assert watch.validations == 2


def test_resume__never_runs_text_of_the_checkpoint(config, tmp_path):
    run = config()
    start(run)
    path = Path(run.work_dir) / 'iter_12.pth'
    checkpoint = load(path)
    checkpoint['meta']['config'] = f"open({str(tmp_path / 'ran')!r}, 'w')"
    torch.save(checkpoint, path)
    start(run, resume=True)
    assert not (tmp_path / 'ran').exists()


def weights_only(path, *dropped):
    """Write a copy of a checkpoint without some keys, newer than all others."""
    checkpoint = load(path)
    for key in dropped:
        del checkpoint[key]
    torch.save(checkpoint, path.with_name('student-0123abcd.pth'))
    return str(path.with_name('student-0123abcd.pth'))


@pytest.mark.parametrize('dropped', [('optimizer',), ('message_hub',), ('optimizer', 'distill')])
def test_checkpoint__weights_only_are_passed_over(config, dropped):
    run = config()
    start(run)
    newest = Path(run.work_dir) / 'iter_12.pth'
    exported = weights_only(newest, *dropped)
    (Path(run.work_dir) / 'last_checkpoint').unlink()
    assert latest_checkpoint(run.work_dir) == (str(newest), [])
    assert latest_checkpoint(run.work_dir, accept=lambda _: True) == (exported, [])
    for path in Path(run.work_dir).glob('iter_*.pth'):
        path.unlink()
    assert latest_checkpoint(run.work_dir) == (None, [])


def refused_to_resume(config, capsys, *args):
    """Resume a training that must be refused; return the printed line."""
    path = Path(config.work_dir).parent / 'config.py'
    config.dump(path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        call_tool('train.py', path, '--resume', *args)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_resume__weights_only_are_refused(config, capsys):
    run = config()
    start(run)
    path = weights_only(Path(run.work_dir) / 'iter_12.pth', 'optimizer', 'message_hub')
    expected = (
        f'train.py: model: checkpoint {path} cannot be resumed (it has no optimizer '
        f'and no message_hub): it is of an exported or published detector, or a best_*.pth; '
        f'start from its weights: --cfg-options load_from={path}, without --resume.\n'
    )
    assert refused_to_resume(run, capsys, path) == expected
    # The training's own, saved with save_optimizer=False: no silent start from the beginning.
    for other in Path(run.work_dir).glob('iter_*.pth'):
        other.unlink()
    (Path(run.work_dir) / 'last_checkpoint').write_text(path)
    assert refused_to_resume(run, capsys) == expected


def test_resume__plain_and_distilled_do_not_mix(config, capsys):
    plain, mixed = config('plain', model=fcos()), config('distilled')
    for run in (plain, mixed):
        start(run)
    kinds = [('plain', plain, 'distilled', mixed), ('distilled', mixed, 'plain', plain)]
    for kind, run, wanted, other in kinds:
        path = f'{run.work_dir}/iter_12.pth'
        line = refused_to_resume(other, capsys, path)
        assert f'is of a {kind} training, and this config of a {wanted} one' in line
        assert f'--cfg-options load_from={path}, without --resume.' in line
        assert line.count('\n') == 1


def test_resume__plain_as_distilled_without_adapters(config, files):
    """The optimizer is the same, so resuming works, with a warning that projections are fitted."""
    plain = config('plain', model=fcos(fpn_channels=24))
    start(plain)
    teacher = dict(
        config=str(files / 'teacher/teacher.py'), checkpoint=str(files / 'teacher/teacher.pth')
    )
    run = config(model=distilled(fcos(fpn_channels=24), teacher))
    run.train_cfg.max_epochs = EPOCHS + 1
    run.dump(Path(run.work_dir).parent / 'config.py')
    path = Path(plain.work_dir) / 'iter_12.pth'
    call_tool('train.py', Path(run.work_dir).parent / 'config.py', '--resume', path)
    log = next(Path(run.work_dir).glob('*/*.log')).read_text()
    assert 'holds no distillation state' in log
    last = latest_checkpoint(run.work_dir)[0]
    assert load(last)['meta']['iter'] > 12

    plain.merge_from_dict({'work_dir': f'{run.work_dir}_plain', 'train_cfg.max_epochs': EPOCHS})
    plain.dump(Path(run.work_dir).parent / 'plain.py')
    call_tool('train.py', Path(run.work_dir).parent / 'plain.py', '--resume', last)
    log = next(Path(plain.work_dir).glob('*/*.log')).read_text()
    assert 'is of a distilled training; it continues without distillation' in log
    assert 'of 12: nothing is left to train' in log
