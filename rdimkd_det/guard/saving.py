"""Checkpoints that are whole or absent, and the newest whole one of a work directory."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.backends.base import BaseStorageBackend
from mmengine.hooks import checkpoint_hook

from ..errors import ConfigError, TrainingStoppedError
from ..files.checkpoints import read_checkpoint_safely
from ..files.whole import write_bytes, write_text, written_whole

LAST_CHECKPOINT = 'last_checkpoint'  # where mmengine notes the newest one's path
INTERRUPTED = 'interrupted.pth'
NEEDED_TO_RESUME = ('optimizer', 'message_hub')


class WholeFileBackend(LocalBackend):
    """mmengine's backend for the local disk, except that a file is written whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file to a temporary name, flush it to the disk, and rename it.

        Args:
            obj (bytes): Content.
            filepath (str | Path): The file; its directory is made if need be.

        Raises:
            TrainingStoppedError: The disk is full, or cannot be written for another reason.
        """
        path = Path(filepath)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, obj)
        except OSError as error:
            raise TrainingStoppedError(
                f'{path} ({len(obj) / 1e6:.0f} MB) could not be written: {error.strerror}. '
                f'{last_good(path.parent)} Make room, then go on with --resume.'
            ) from error


def write_checkpoints_whole() -> None:
    """Have mmengine write checkpoints, and which is the newest, whole from now on.

    mmengine (0.10.7, OneDL 0.10.12) writes both in place: a kill or a full disk leaves half of it.
    """
    register_backend('local', WholeFileBackend, force=True, prefixes='')
    # All that this module opens is `last_checkpoint`.
    checkpoint_hook.open = _open_whole


def _open_whole(path: str, mode: str) -> AbstractContextManager[IO]:
    return written_whole(Path(path), mode)


class LateRemoval:
    """A file backend of ``CheckpointHook`` that removes outdated checkpoints late.

    mmengine (0.10.7, OneDL 0.10.12) removes the oldest checkpoint before it writes the new one:
    with ``max_keep_ckpts=1`` a full disk or a kill in between leaves none at all.

    Args:
        backend (BaseStorageBackend): The backend that it stands in for.
    """

    def __init__(self, backend: BaseStorageBackend) -> None:
        self._backend = backend
        self._outdated: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)

    def remove(self, filepath: str | Path) -> None:
        """Note a file that :meth:`flush` is to remove."""
        self._outdated.append(str(filepath))

    def flush(self) -> None:
        """Remove what has been noted; called when the new checkpoint is there."""
        while self._outdated:
            path = self._outdated.pop()
            if self._backend.isfile(path):
                self._backend.remove(path)


def missing_to_resume(checkpoint: Mapping) -> list[str]:
    """What a checkpoint lacks of the entries that mmengine's Runner resumes a training from.

    Exported students, mmengine's ``best_*.pth`` and published weights lack some.

    Args:
        checkpoint (Mapping): A checkpoint that has been read.
    """
    return [key for key in NEEDED_TO_RESUME if key not in checkpoint]


def resumable(checkpoint: Mapping) -> bool:
    """Whether a training can go on from a checkpoint that has been read."""
    return not missing_to_resume(checkpoint)


def latest_checkpoint(
    work_dir: str | Path, accept: Callable[[Mapping], bool] = resumable
) -> tuple[str | None, list[str]]:
    """The newest checkpoint that is whole.

    Args:
        work_dir (str | Path): Work directory of a training.
        accept (Callable): Which checkpoints are meant; is given what has been read of one.
            Defaults to those that a training can go on from.

    Returns:
        tuple[str | None, list[str]]: The checkpoint, None if there is none; and the newer ones
        that are cut off or damaged.

    Raises:
        ConfigError: There are checkpoints, and all of them are damaged.
    """
    damaged = []
    for path in _newest_first(Path(work_dir)):
        if not is_whole(path):
            damaged.append(str(path))
        elif _accepted(path, accept):
            return str(path), damaged
    if damaged:
        raise ConfigError(
            f'none of the {len(damaged)} checkpoints in {work_dir} is whole '
            f'({", ".join(damaged[:3])}); train anew without --resume.'
        )
    return None, []


def _accepted(path: Path, accept: Callable[[Mapping], bool]) -> bool:
    try:
        checkpoint = _read(path)
    except ConfigError:  # whoever resumes from it is told why it cannot be read
        return True
    return isinstance(checkpoint, Mapping) and accept(checkpoint)


def _read(path: Path) -> object:
    mapped = zipfile.is_zipfile(path)  # then only what is looked at is read
    return read_checkpoint_safely(str(path), who='model', mapped=mapped)


def last_good(work_dir: str | Path) -> str:
    """A sentence that names the newest whole checkpoint."""
    path = newest_or_none(work_dir)
    return f'The last good checkpoint is {path}.' if path else 'There is no checkpoint yet.'


def newest_or_none(
    work_dir: str | Path, accept: Callable[[Mapping], bool] = resumable
) -> str | None:
    """As :func:`latest_checkpoint`, where damaged ones do not matter."""
    try:
        return latest_checkpoint(work_dir, accept)[0]
    except ConfigError:
        return None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint has all its bytes, as the checksums in it say.

    Args:
        path (Path): A file of ``torch.save``: a zip archive, or a pickle of before 2020, which
            has no checksums and is left to whoever reads it.
    """
    try:
        with path.open('rb') as file:
            if file.read(1) == pickle.PROTO:
                return True
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False


def _newest_first(work_dir: Path) -> Iterator[Path]:
    noted = noted_checkpoint(work_dir)
    if noted is not None:
        yield noted
    # What is beyond it was left there by an earlier training.
    limit = _iteration(noted) if noted is not None else float('inf')

    def age(path: Path) -> tuple[bool, float, float]:
        iteration = _iteration(path)
        return iteration <= limit, iteration, path.stat().st_mtime

    # A best_*.pth is not where the training stands.
    others = [path for path in work_dir.glob('*.pth') if not path.name.startswith('best_')]
    for path in sorted(others, key=age, reverse=True):
        if noted is None or path.resolve() != noted.resolve():
            yield path


def noted_checkpoint(work_dir: Path) -> Path | None:
    """The checkpoint that a work directory notes as its newest, if it is there."""
    note = work_dir / LAST_CHECKPOINT
    if not note.is_file():
        return None
    named = Path(note.read_text().strip())
    # In a work directory that was copied or moved the note still names the old place.
    if (work_dir / named.name).is_file():
        return work_dir / named.name
    # CheckpointHook(out_dir=...) has checkpoints elsewhere, but not in another work directory.
    of_another = (named.parent / LAST_CHECKPOINT).is_file()
    return named if named.is_file() and not of_another else None


def _iteration(path: Path) -> float:
    """The iteration of a checkpoint; its file's time would be that of its copying, in a copy."""
    try:
        iteration = _read(path)['meta']['iter']
    except ConfigError:
        # One that is cut off is told, and passed over; one that is refused is the last resort.
        return -1 if is_whole(path) else float('inf')
    except (KeyError, TypeError):
        return -1
    return iteration if isinstance(iteration, int) else -1


def note_last_checkpoint(work_dir: str | Path, path: str | Path) -> None:
    """Note, where mmengine looks for it, which checkpoint is the newest."""
    write_text(Path(work_dir) / LAST_CHECKPOINT, str(path))
