"""The state that a training run resumes from: random states and the position in the data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from ...random_state import RandomState, random_state, set_random_state
from .data_position import DataPosition

# State of a data loader without random states to restore in its workers.
NO_STATES = {'num_workers': -1, 'batches': 0, 'states': []}


def batches_done(done: int, earlier: int, length: int) -> int:
    """Return how many batches of an epoch are done after its length has changed: all or none."""
    if earlier == length:
        return done
    return length if done == earlier else 0


class ResumePoint:
    """Tracks the position of a training run, and restores it in a new run.

    An epoch-based loop can resume in the middle of an epoch. For an iteration-based loop, mmengine
    itself advances the data. The runner's loop must be built, and not have begun.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        self._data = DataPosition(runner.train_dataloader) if self._by_epoch else None
        self._place = (0, 0)  # an epoch, and the number of its batches that have arrived
        self._at_epoch_end = False
        self._epoch_start: RandomState = {}
        self._resumed_epoch_start: RandomState | None = None
        self._validated = False

    def state(self, epoch: int) -> dict:
        """Return what :meth:`restore` needs, as plain data; ``epoch`` counts finished epochs."""
        done = self._place[1] if self._by_epoch and self._place[0] == epoch else 0
        return {
            'now': random_state(),
            'epoch_start': self._epoch_start,
            'validated': self._validated,
            'batches': done,
            'epoch_length': self._epoch_length,
            'input_sizes': [augment._input_size for augment in self._resizing()],
            'data': self._data.state(done) if self._by_epoch else {},
        }

    @property
    def _epoch_length(self) -> int:
        return len(self._runner.train_dataloader) if self._by_epoch else 0

    def _resizing(self) -> list[nn.Module]:
        """Return the batch augmentations that keep a drawn size for many batches, as YOLOX's."""
        model = self._runner.model
        preprocessor = (model.module if is_model_wrapper(model) else model).data_preprocessor
        augments = getattr(preprocessor, 'batch_augments', None) or ()
        return [augment for augment in augments if hasattr(augment, '_input_size')]

    def restore(self, state: dict, same_processes: bool) -> None:
        """Restore a state, of this version or an earlier one, so that the run continues from it.

        A validation that was due there and may have been cut off is run again: mmengine (0.10.7,
        OneDL 0.10.12) skips it, although it can advance the random state. Where the number of
        processes has changed, only the position is restored, not the random states.
        """
        loop = self._runner.train_loop
        if not self._by_epoch and not hasattr(loop, 'dataloader_iterator'):
            self._runner.logger.warning(
                'RdimKD: %s is a custom train loop, which mmengine alone resumes: random states '
                'and the position in the data are not restored',
                type(loop).__name__,
            )
            return
        done, length = _stored_place(state, loop, self._epoch_length)
        between_epochs = done == 0
        if length != self._epoch_length:
            done = self._place_in_other_epoch(done, length)
        if not same_processes or length != self._epoch_length:
            state = {**state, 'data': NO_STATES}
        if not same_processes:
            state.update(now=random_state(), epoch_start=random_state())
        for augment, size in zip(self._resizing(), state.get('input_sizes', ())):
            augment._input_size = size
        now = state['now']
        set_random_state(now)
        if between_epochs and not state['validated'] and self._validation_is_due():
            self._runner.logger.info('RdimKD: validating again, as it may have been cut off')
            if self._by_epoch:
                self._data.remember(state['data'])  # save_best may save after it
            self._runner.val_loop.run()
            now = random_state()
        restore = partial(set_random_state, now)
        if not self._by_epoch:
            loop.dataloader_iterator = _At(loop.dataloader_iterator, loop.iter, restore)
        elif done or state['data']['states']:
            self._at_epoch_end = done == self._epoch_length
            self._resumed_epoch_start = state['epoch_start'] if done else now
            loop.run_epoch = partial(self._run_rest_of_epoch, state['data'], done, restore)

    def _place_in_other_epoch(self, done: int, length: int) -> int:
        """Return the number of batches done if the length of an epoch has changed.

        The batch size, the dataset or the number of processes may have changed.
        """
        kept = batches_done(done, length, self._epoch_length)
        if done and not kept:
            self._runner.logger.warning(
                'RdimKD: the checkpoint stands at batch %d of an epoch of another length (now it '
                'is %d): this epoch starts again',
                done,
                self._epoch_length,
            )
        return kept

    @property
    def nothing_left(self) -> bool:
        """bool: Whether the run is complete."""
        loop = self._runner.train_loop
        if self._by_epoch:
            return loop.epoch + self._at_epoch_end >= loop.max_epochs
        return loop.iter >= loop.max_iters

    def _validation_is_due(self) -> bool:
        loop = self._runner.train_loop
        time, end = (loop.epoch, loop.max_epochs) if self._by_epoch else (loop.iter, loop.max_iters)
        if self._runner.val_loop is None or time < max(1, loop.val_begin):
            return False
        loop._decide_current_val_interval()
        return time % loop.val_interval == 0 or time == end

    def _run_rest_of_epoch(self, data: dict, done: int, restore: Callable[[], None]) -> None:
        """Replaces ``EpochBasedTrainLoop.run_epoch`` once, to begin in the middle of an epoch."""
        runner, loop = self._runner, self._runner.train_loop
        del loop.run_epoch
        runner.call_hook('before_train_epoch')
        runner.model.train()
        repeated = self._data.restore(data, done, restore)
        for index, batch in enumerate(loop.dataloader, done - repeated):
            if index < done:
                self._data.advance(index, batch)
            else:
                loop.run_iter(index, batch)
        self._data.forget()
        runner.call_hook('after_train_epoch')
        loop._epoch += 1

    def start_epoch(self) -> None:
        """Record the random state at the start of an epoch, or restore it in a resumed epoch."""
        if self._resumed_epoch_start is not None:
            set_random_state(self._resumed_epoch_start)
            self._resumed_epoch_start = None
        self._epoch_start = random_state()
        if self._by_epoch:
            self._data.start_epoch()

    def start_iteration(self, index: int, batch: object) -> None:
        """Record that a batch has arrived, and take the worker's random state out of it."""
        self._validated = False
        if self._by_epoch:
            self._place = (self._runner.epoch, index + 1)
            self._data.advance(index, batch)

    def end_validation(self) -> None:
        """Record that a validation has finished."""
        self._validated = True


def _stored_place(state: dict, loop: EpochBasedTrainLoop, length: int) -> tuple[int, int]:
    """Return the number of batches done in a state's epoch, and its length (-1 if unknown)."""
    if 'batches' in state or not state['data']:
        return state.get('batches', 0), state.get('epoch_length', 0)
    # A state of an earlier version, which assumed epochs of equal length. That holds if the result
    # agrees with the position of the workers.
    data = state['data']
    done, least = loop.iter - loop.epoch * length, data['batches']
    agrees = least <= done < least + max(1, data['num_workers'])
    return (done, length) if agrees else (least, -1)


class _At:
    """Calls a function once an iterator has yielded a number of items."""

    def __init__(self, iterator: object, num_items: int, function: Callable[[], None]) -> None:
        self._iterator = iterator
        self._left = num_items
        self._function = function

    def __next__(self) -> object:
        if self._left == 0:
            # OneDL's iterator (0.10.12) starts only now, which draws a random number.
            getattr(self._iterator, '_ensure_iterator', lambda: None)()
            self._function()
        self._left -= 1
        return next(self._iterator)

    def skip_iter(self, num_iters: int) -> None:
        """Skip items; OneDL's mmengine (0.10.12) calls this instead of ``next``."""
        self._iterator.skip_iter(num_iters)
        self._left -= num_iters
