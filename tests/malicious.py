"""What an untrusted file may hold."""

from pathlib import Path


class Payload:
    """Makes a file when it is unpickled unsafely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
