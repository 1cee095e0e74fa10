"""SIGTERM and Ctrl-C ask a training to end after the current iteration."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
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
        self._training = _caller_of_hooks()
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in SIGNALS}

    def stop_listening(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._earlier.items():
            # None: a handler that was not set from Python, and cannot be set again from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
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
