"""SIGTERM and Ctrl-C ask a training run to end after the current iteration."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from types import CodeType, FrameType

from torch.utils.data import get_worker_info

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds in which another SIGTERM is the same request: Slurm sends one to all processes of a job,
# whereupon torchrun sends its own.
SAME_REQUEST = 10


class StopRequest:
    """Records the signal that has asked the process to end; a second one ends it at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._same_until = 0.0
        self._earlier: dict[int, object] = {}
        self._training: CodeType | None = None

    @property
    def listening(self) -> bool:
        """bool: Whether this object handles signals, or has received one."""
        return bool(self._earlier) or self.signal is not None

    def listen(self) -> None:
        """Handle the signals while the calling training loop runs.

        Only the main thread can set handlers; in another thread nothing is handled.
        """
        _follow_forks()
        self._training = _caller_of_hooks()
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in SIGNALS}

    def stop_listening(self) -> None:
        """Restore the earlier signal handlers."""
        for number in self._earlier:
            self._give_back(number)
        self._earlier = {}

    def _give_back(self, number: int) -> None:
        handler = self._earlier[number]
        # None: the handler was not set from Python, and cannot be set again from Python.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def reset_in_child(self) -> None:
        """In a forked process, restore the SIGTERM handler and ignore Ctrl-C."""
        self._give_back(signal.SIGTERM)
        # A terminal sends Ctrl-C to all of its processes. A data loader worker must survive it,
        # since the parent waits for its batch before stopping. Not SIG_IGN, which would outlive an
        # exec.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        self._earlier = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and time.monotonic() < self._same_until:
            return
        training = self._training in (None, *(it.f_code for it in _stack(frame)))
        if self.signal is not None or not training:  # an exception has already ended it
            self.stop_listening()
            signal.raise_signal(number)
            return
        self.signal, self._same_until = number, time.monotonic() + SAME_REQUEST
        os.write(2, b'stopping after this iteration, with a checkpoint; once more stops at once\n')


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _caller_of_hooks() -> CodeType | None:
    """Return the code of the training loop's ``run``, which called the hooks on the stack."""
    frames = list(_stack(sys._getframe()))
    for called, caller in zip(frames, frames[1:]):
        if called.f_code.co_name == 'call_hook':
            return caller.f_code
    return None


_mask = threading.local()


@cache
def _follow_forks() -> None:
    """Make processes that are forked during training end on SIGTERM only if it is their parent's.

    They inherit the handlers: a forked process would record the request and continue, while its
    parent (``multiprocessing.Pool``, which some metrics use) waits for it to end. Slurm, torchrun
    and ``timeout`` send SIGTERM to them too, but the last iterations need the workers' batches.
    """
    if hasattr(os, 'register_at_fork'):  # not on Windows, where nothing is forked
        os.register_at_fork(
            before=_hold_signals,
            after_in_parent=_let_signals_come,
            after_in_child=_leave_signals_to_parent,
        )


def _hold_signals() -> None:
    # A signal that arrived before the child has its own handlers would be lost, so it is blocked.
    _mask.earlier = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _let_signals_come() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.earlier)


def _leave_signals_to_parent() -> None:
    request = getattr(signal.getsignal(signal.SIGTERM), '__self__', None)
    if isinstance(request, StopRequest):
        request.reset_in_child()
        if hasattr(signal, 'sigwaitinfo'):  # not on macOS, where any SIGTERM ends them
            _mask.earlier |= {signal.SIGTERM}
            threading.Thread(target=_end_for, args=[os.getppid()], daemon=True).start()
    _let_signals_come()


def _end_for(parent: int) -> None:
    """End the process by a SIGTERM of its parent, or of any process once that is gone."""
    sender = None
    while sender != parent and os.getppid() == parent:
        sender = signal.sigwaitinfo([signal.SIGTERM]).si_pid
    if get_worker_info() is not None:
        os._exit(0)  # as PyTorch's own handler does; any other status is an error in the parent
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    signal.raise_signal(signal.SIGTERM)
