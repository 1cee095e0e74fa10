"""Where a data loader stands within an epoch, random states of its workers included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import DataLoader, get_worker_info

from ..random_state import RandomState, random_state, set_random_state

# In a batch (a dict), on its way from a worker to the training process.
KEY = '_rdimkd_random_state'


class DataPosition:
    """Follows an epoch-based data loader, and puts a new one where another stood.

    Each worker sends its random state along with each batch. A new loader hands out batches to its
    workers in turn from the first one, so that workers can only start anew where a whole round of
    them began: the states of the last such round are kept, and the batches since then are loaded
    again and dropped.

    Args:
        loader (DataLoader): Training data loader, before its first iteration.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.num_workers = loader.num_workers
        self._latest: list[RandomState | None] = [None] * self.num_workers
        self._round = {'batches': 0, 'states': []}
        self._restarted = False  # whether a hook has had persistent workers started anew
        if self.num_workers:
            loader.collate_fn = _SendState(loader.collate_fn)
            loader.worker_init_fn = _StartFrom(loader.worker_init_fn)

    def start_epoch(self) -> None:
        """Note that an epoch begins; hooks may have had persistent workers started anew in it."""
        if self._workers_dropped:
            self._latest = [None] * self.num_workers
            self._restarted = True
        self._round = self._first_round()

    @property
    def _workers_dropped(self) -> bool:
        # PipelineSwitchHook and YOLOXModeSwitchHook (mmdet 3.3.0, OneDL 3.5.1) do it by this flag:
        # in the epoch of the switch, and in the first one of each resumed training after it.
        return not self.loader._DataLoader__initialized

    def _first_round(self) -> dict:
        # Workers that live for one epoch only start the next one anew, from their seeds.
        lives_on = self.num_workers > 0 and self.loader.persistent_workers
        known = lives_on and None not in self._latest
        return {'batches': 0, 'states': list(self._latest) if known else []}

    def advance(self, index: int, batch: object) -> None:
        """Note that a batch has come, and take the worker's state out of it.

        Args:
            index (int): Its index in the epoch.
            batch (dict): The batch.
        """
        if not self.num_workers or not isinstance(batch, dict) or KEY not in batch:
            return
        self._latest[index % self.num_workers] = batch.pop(KEY)
        if (index + 1) % self.num_workers == 0:
            self._round = {'batches': index + 1, 'states': list(self._latest)}

    def state(self, num_batches: int) -> dict:
        """What a new loader needs; plain data.

        Args:
            num_batches (int): Batches of this epoch that have been trained on; 0 between epochs.
        """
        if not self.num_workers:
            start = {'batches': num_batches, 'states': []}
        else:
            start = self._round if num_batches else self._first_round()
        return {'num_workers': self.num_workers, 'restarted': self._restarted, **start}

    def restore(self, state: dict, num_batches: int, at_position: Callable[[], None]) -> int:
        """Let the next iteration of the loader go on from a position.

        Args:
            state (dict): From :meth:`state`.
            num_batches (int): Batches of this epoch that have been trained on.
            at_position (Callable): Called when the loader has skipped them.

        Returns:
            int: Number of batches that it will load again, to be dropped.
        """
        if self._workers_dropped and not num_batches and not state.get('restarted'):
            return 0  # the workers with these states would have ended here
        skip = state['batches'] if state['num_workers'] == self.num_workers else num_batches
        if state['states'] and state['num_workers'] == self.num_workers:
            self._latest = list(state['states'])
            self.loader.worker_init_fn.states = state['states']
        _skip_once(self.loader, skip, at_position)
        return num_batches - skip

    def forget(self) -> None:
        """Let workers of later epochs start as they do without a restored position."""
        if self.num_workers:
            self.loader.worker_init_fn.states = []


class _SendState:
    """A ``collate_fn`` that adds the worker's random state to the batch."""

    def __init__(self, collate_fn: Callable) -> None:
        self.collate_fn = collate_fn

    def __call__(self, samples: Sequence) -> object:
        batch = self.collate_fn(samples)
        if isinstance(batch, dict) and get_worker_info() is not None:
            batch[KEY] = random_state()
        return batch


class _StartFrom:
    """A ``worker_init_fn`` after which a worker goes on from a random state."""

    def __init__(self, worker_init_fn: Callable | None) -> None:
        self.worker_init_fn = worker_init_fn
        self.states: Sequence[RandomState] = []

    def __call__(self, worker_id: int) -> None:
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)
        if self.states:
            set_random_state(self.states[worker_id])


class _Skipping:
    """A batch sampler that leaves out the first batches, the next time only."""

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


def _skip_once(loader: DataLoader, skip: int, at_position: Callable[[], None]) -> None:
    # DataLoader refuses another batch_sampler after its construction, since an iterator that
    # exists would not see it; here there is none yet.
    sampler = _Skipping(loader.batch_sampler, skip, at_position)
    object.__setattr__(loader, 'batch_sampler', sampler)
