"""Writes checkpoints whole or not at all, and finds the newest whole one."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.backends.base import BaseStorageBackend
from mmengine.hooks import CheckpointHook, checkpoint_hook

from ...errors import ConfigError, TrainingStoppedError
from ...files.atomic import write_bytes, written_whole
from ...files.checkpoints import read_checkpoint_safely

LAST_CHECKPOINT = 'last_checkpoint'  # file in which mmengine notes the path of the newest one
INTERRUPTED = 'interrupted.pth'
NEEDED_TO_RESUME = ('optimizer', 'message_hub')


class AtomicFileBackend(LocalBackend):
    """mmengine's backend for the local disk, with files written whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file to a temporary name, flush it to the disk, and rename it."""
        path = Path(filepath)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, obj)
        except OSError as error:
            raise TrainingStoppedError(
                f'{path} ({len(obj) / 1e6:.0f} MB) could not be written: {error.strerror}. '
                f'{describe_last_good(path.parent)} Make room, then continue with --resume.'
            ) from error


def write_checkpoints_whole() -> None:
    """Make mmengine write checkpoints and the file ``last_checkpoint`` whole or not at all.

    mmengine (0.10.7, OneDL 0.10.12) writes both in place: a kill or a full disk leaves half a file.
    """
    register_backend('local', AtomicFileBackend, force=True, prefixes='')
    # The only file that this module opens is `last_checkpoint`.
    checkpoint_hook.open = lambda path, mode: written_whole(Path(path), mode)


class LateRemoval:
    """A file backend for ``CheckpointHook`` that removes outdated checkpoints late.

    mmengine (0.10.7, OneDL 0.10.12) removes the oldest checkpoint before it writes the new one:
    with ``max_keep_ckpts=1`` a full disk or a kill in between leaves none at all.
    """

    def __init__(self, hook: CheckpointHook) -> None:
        self._hook = hook
        self._backend: BaseStorageBackend = hook.file_backend
        self._outdated: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)

    def remove(self, filepath: str | Path) -> None:
        """Mark a file for removal by :meth:`flush`."""
        self._outdated.append(str(filepath))

    def flush(self) -> None:
        """Remove the marked files; called once the new checkpoint is written.

        An iteration-based training may have written it to the name of an outdated one.
        """
        bests = getattr(self._hook, 'best_ckpt_path_dict', {}).values()
        written = {self._hook.last_ckpt, getattr(self._hook, 'best_ckpt_path', None), *bests}
        while self._outdated:
            path = self._outdated.pop()
            if path not in written and self._backend.isfile(path):
                self._backend.remove(path)


def missing_to_resume(checkpoint: Mapping) -> list[str]:
    """Return the entries that mmengine's Runner needs to resume and that a checkpoint lacks.

    Exported students, mmengine's ``best_*.pth`` and published weights lack some.
    """
    return [key for key in NEEDED_TO_RESUME if key not in checkpoint]


def resumable(checkpoint: Mapping) -> bool:
    """Return whether a training run can resume from the content of a checkpoint."""
    return not missing_to_resume(checkpoint)


def latest_checkpoint(
    work_dir: str | Path, accept: Callable[[Mapping], bool] = resumable
) -> tuple[str | None, list[str]]:
    """Return the newest whole checkpoint of a work directory that ``accept`` takes, or None.

    Also returned are the newer ones that are cut off or damaged.

    Raises:
        ConfigError: No checkpoint qualifies, and at least one is damaged.
    """
    damaged = []
    for path in _newest_first(Path(work_dir)):
        if not is_intact(path):
            damaged.append(str(path))
        elif _accepted(path, accept):
            return str(path), damaged
    if damaged:
        raise ConfigError(
            f'none of the {len(damaged)} checkpoints in {work_dir} is intact '
            f'({", ".join(damaged[:3])}); train anew without --resume.'
        )
    return None, []


def _accepted(path: Path, accept: Callable[[Mapping], bool]) -> bool:
    try:
        checkpoint = _read(path)
    except ConfigError:  # resuming from it will report why it cannot be read
        return True
    return isinstance(checkpoint, Mapping) and accept(checkpoint)


def _read(path: str | Path) -> object:
    mapped = zipfile.is_zipfile(path)  # then only the tensors that are used are read
    return read_checkpoint_safely(str(path), who='model', mapped=mapped)


def seed_of(path: str) -> int | None:
    """Return the random seed of the training that wrote a checkpoint."""
    return _read(path)['meta'].get('seed')


def describe_last_good(work_dir: str | Path) -> str:
    """Return a sentence that names the newest whole checkpoint."""
    path = latest_or_none(work_dir)
    return f'The last good checkpoint is {path}.' if path else 'There is no checkpoint yet.'


def latest_or_none(
    work_dir: str | Path, accept: Callable[[Mapping], bool] = resumable
) -> str | None:
    """Return the path of :func:`latest_checkpoint`; None if no checkpoint qualifies."""
    try:
        return latest_checkpoint(work_dir, accept)[0]
    except ConfigError:
        return None


def is_intact(path: Path) -> bool:
    """Return whether a checkpoint is complete, according to the checksums in it.

    A pickle from before 2020 has no checksums and counts as complete.
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
    # Checkpoints of later iterations were left by an earlier run, and come last.
    limit = _iteration(noted) if noted is not None else float('inf')

    def age(path: Path) -> tuple[bool, float, float]:
        iteration = _iteration(path)
        return iteration <= limit, iteration, path.stat().st_mtime

    # A best_*.pth is not the latest state of the run.
    others = [path for path in work_dir.glob('*.pth') if not path.name.startswith('best_')]
    for path in sorted(others, key=age, reverse=True):
        if noted is None or path.resolve() != noted.resolve():
            yield path


def noted_checkpoint(work_dir: Path) -> Path | None:
    """Return the checkpoint that a work directory notes as its newest; None if it is missing."""
    note = work_dir / LAST_CHECKPOINT
    if not note.is_file():
        return None
    named = Path(note.read_text().strip())
    # After the work directory was copied or moved, the note still names the old place.
    if (work_dir / named.name).is_file():
        return work_dir / named.name
    # CheckpointHook(out_dir=...) writes checkpoints elsewhere, but not into another work directory.
    of_another = (named.parent / LAST_CHECKPOINT).is_file()
    return named if named.is_file() and not of_another else None


def _iteration(path: Path) -> float:
    """Return the iteration of a checkpoint, for sorting; copying a file changes its time."""
    try:
        iteration = _read(path)['meta']['iter']
    except ConfigError:
        # A damaged file counts as newest, so that it is reported; an unreadable one as oldest.
        return -1 if is_intact(path) else float('inf')
    except (KeyError, TypeError):
        return -1
    return iteration if isinstance(iteration, int) else -1
