"""SIGTERM and Ctrl-C ask a training to end after the current iteration."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from functools import cache
from types import CodeType, FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers that a signal has asked the process to end; a second one ends it at once.

    Attributes:
        signal (int | None): The signal's number.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._earlier: dict[int, object] = {}
        self._training: CodeType | None = None

    @property
    def listening(self) -> bool:
        """bool: Whether signals come here, or one has come."""
        return bool(self._earlier) or self.signal is not None

    def listen(self) -> None:
        """Take over the signals, for as long as the caller's training runs.

        Only the main thread can.
        """
        _follow_forks()
        self._training = _caller_of_hooks()
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in SIGNALS}

    def stop_listening(self) -> None:
        """Give the signals back to whoever had them."""
        for number in self._earlier:
            self._give_back(number)
        self._earlier = {}

    def _give_back(self, number: int) -> None:
        handler = self._earlier[number]
        # None: a handler that was not set from Python, and cannot be set again from there.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def leave_to_parent(self) -> None:
        """In a forked process: SIGTERM means what it did before, Ctrl-C is the parent's alone."""
        self._give_back(signal.SIGTERM)
        # A terminal sends Ctrl-C to all of its processes: a data loader's worker that it ended
        # would take the batch with it that the parent waits for, to end in good order. Not
        # SIG_IGN, which would outlive an exec.
        signal.signal(signal.SIGINT, _do_nothing)
        self._earlier = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop_listening()
        if self._training not in (None, *(it.f_code for it in _stack(frame))):
            signal.raise_signal(number)  # an exception has ended the training: not ours any more
            return
        self.signal = number
        os.write(2, b'stopping after this iteration, with a checkpoint; again to stop at once\n')


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _caller_of_hooks() -> CodeType | None:
    """The code of the runner's ``train``, which calls the hooks that are on the stack."""
    frames = list(_stack(sys._getframe()))
    for called, caller in zip(frames, frames[1:]):
        if called.f_code.co_name == 'call_hook':
            return caller.f_code
    return None


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


_mask = threading.local()


@cache
def _follow_forks() -> None:
    """Let processes that are forked during a training end by SIGTERM, as others do.

    They inherit Python's handlers, so that one would note a request and go on, while its parent
    (``multiprocessing.Pool``, with which some metrics work) waits for its end.
    """
    if hasattr(os, 'register_at_fork'):  # not on Windows, where nothing is forked
        os.register_at_fork(
            before=_hold_signals,
            after_in_parent=_let_signals_come,
            after_in_child=_leave_signals_to_parent,
        )


def _listener() -> StopRequest | None:
    """The request that the signals come to, if they come to one."""
    request = getattr(signal.getsignal(signal.SIGTERM), '__self__', None)
    return request if isinstance(request, StopRequest) else None


def _hold_signals() -> None:
    # One that comes before the child has handlers of its own would be lost: it waits.
    _mask.earlier = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS if _listener() else ())


def _let_signals_come() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.earlier)


def _leave_signals_to_parent() -> None:
    request = _listener()
    if request is not None:
        request.leave_to_parent()
    _let_signals_come()
