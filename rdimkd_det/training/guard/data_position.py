"""The position of a data loader within an epoch, including the random states of its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch.utils.data import DataLoader, get_worker_info

from ...random_state import RandomState, random_state, set_random_state

# Key under which a worker puts its random state into a batch (a dict).
KEY = '_rdimkd_random_state'


class DataPosition:
    """Tracks the position of an epoch-based data loader, and restores it in a new one.

    Each worker sends its random state along with each batch. A new loader assigns batches to its
    workers in turn, beginning with the first worker, so a restart is only possible where a round
    of all workers begins. The states at the start of the current round are kept, and the batches
    since then are loaded again and dropped. Make it before the loader's first iteration.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.num_workers = loader.num_workers
        self._latest: list[RandomState | None] = [None] * self.num_workers
        self._round = {'batches': 0, 'states': []}
        self._restarted = False  # whether a hook has restarted persistent workers
        self._restored: list[RandomState] = []  # where workers start, one each; by default a seed
        if self.num_workers:
            loader.collate_fn = partial(_with_state, loader.collate_fn)
            loader.worker_init_fn = partial(_start_from, loader.worker_init_fn, self._restored)

    def start_epoch(self) -> None:
        """Record that an epoch begins, for which a hook may have restarted persistent workers."""
        if self._workers_dropped:
            self._latest = [None] * self.num_workers
            self._restarted = True
        self._round = self._first_round()

    @property
    def _workers_dropped(self) -> bool:
        # PipelineSwitchHook and YOLOXModeSwitchHook (mmdet 3.3.0, OneDL 3.5.1) restart the workers
        # by this flag: in the epoch of the switch, and in the first epoch of each run that is
        # resumed after it.
        return not self.loader._DataLoader__initialized

    def _first_round(self) -> dict:
        # Workers that are not persistent start each epoch from their seeds.
        lives_on = self.num_workers > 0 and self.loader.persistent_workers
        known = lives_on and None not in self._latest
        return {'batches': 0, 'states': list(self._latest) if known else []}

    def advance(self, index: int, batch: object) -> None:
        """Record that a batch has arrived, and take the worker's random state out of it."""
        if not self.num_workers or not isinstance(batch, dict) or KEY not in batch:
            return
        self._latest[index % self.num_workers] = batch.pop(KEY)
        if (index + 1) % self.num_workers == 0:
            self._round = {'batches': index + 1, 'states': list(self._latest)}

    def state(self, num_batches: int) -> dict:
        """Return what a new loader needs to continue from here, as plain data.

        ``num_batches`` of this epoch have been trained on; 0 between epochs.
        """
        if not self.num_workers:
            start = {'batches': num_batches, 'states': []}
        else:
            start = self._round if num_batches else self._first_round()
        return {'num_workers': self.num_workers, 'restarted': self._restarted, **start}

    def remember(self, state: dict) -> None:
        """Take over a state that may be saved once more before a pass of the loader restores it."""
        self._restarted = state.get('restarted', False)
        if state['num_workers'] == self.num_workers and state['states']:
            self._latest = list(state['states'])

    def restore(self, state: dict, num_batches: int, at_position: Callable[[], None]) -> int:
        """Make the loader's next pass continue from a position, where it calls ``at_position``.

        Returns the number of batches that the loader loads again, and that the caller must drop.
        """
        if self._workers_dropped and not num_batches and not state.get('restarted'):
            return 0  # without the interruption, a hook would have ended these workers here
        skip = state['batches'] if state['num_workers'] == self.num_workers else num_batches
        if state['states'] and state['num_workers'] == self.num_workers:
            self._latest = list(state['states'])
            self._round = {'batches': skip, 'states': state['states']}
            self._restored[:] = state['states']
        # DataLoader refuses a new batch_sampler after construction, since an existing iterator
        # would not see it; here there is no iterator yet.
        sampler = _Skipping(self.loader.batch_sampler, skip, at_position)
        object.__setattr__(self.loader, 'batch_sampler', sampler)
        return num_batches - skip

    def forget(self) -> None:
        """Drop the restored states, so that workers of later epochs start from their seeds."""
        self._restored.clear()


def _with_state(collate_fn: Callable, samples: Sequence) -> object:
    """Collate a batch, and add the worker's random state to it."""
    batch = collate_fn(samples)
    if isinstance(batch, dict) and get_worker_info() is not None:
        batch[KEY] = random_state()
    return batch


def _start_from(
    worker_init_fn: Callable | None, states: Sequence[RandomState], worker_id: int
) -> None:
    """Initialise a worker, and give it its restored random state, if there is one."""
    if worker_init_fn is not None:
        worker_init_fn(worker_id)
    if states:
        set_random_state(states[worker_id])


class _Skipping:
    """A batch sampler that skips the first batches, in its next pass only."""

    def __init__(self, batch_sampler: object, skip: int, at_position: Callable[[], None]) -> None:
        self._batch_sampler = batch_sampler
        self._skip = skip
        self._at_position = at_position

    def __getattr__(self, name: str) -> object:
        return getattr(self._batch_sampler, name)

    def __len__(self) -> int:
        return len(self._batch_sampler)

    def __iter__(self) -> Iterator:
        batches = iter(self._batch_sampler)
        skip, self._skip = self._skip, None
        if skip is not None:
            for _ in range(skip):
                next(batches, None)
            self._at_position()
        yield from batches
