"""SIGTERM and Ctrl-C ask a training to end after the current iteration."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers that a signal has asked the process to end; a second one ends it at once.

    Attributes:
        signal (int | None): The signal's number.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._earlier: dict[int, object] = {}

    @property
    def listening(self) -> bool:
        """bool: Whether signals come here, or one has come."""
        return bool(self._earlier) or self.signal is not None

    def listen(self) -> None:
        """Take over the signals; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in SIGNALS}

    def stop_listening(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._earlier.items():
            # None: a handler that was not set from Python, and cannot be set again from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._earlier = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.stop_listening()
        os.write(2, b'stopping after this iteration, with a checkpoint; again to stop at once\n')
