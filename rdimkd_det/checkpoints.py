"""Reading checkpoints without running code from them."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from mmengine import fileio

from .compat import allow_checkpoint_types
from .errors import ConfigError

# What has been read within `weights_kept`, by file.
_kept: dict[tuple, Mapping[str, torch.Tensor]] = {}
_keeping = False


@contextmanager
def weights_kept() -> Iterator[None]:
    """Keep what the block reads for the next reading of the same file, which takes it.

    For a check that is followed by the run itself in the same process.
    """
    global _keeping
    _keeping = True
    try:
        yield
    finally:
        _keeping = False


def load_checkpoint_safely(path: str, who: str, mapped: bool = False) -> Mapping[str, torch.Tensor]:
    """Weights of a checkpoint, unpickled with the allow-list of PyTorch and ``compat`` only.

    Args:
        path (str): A path, an http(s) URL (downloaded once, its hash compared with the one in an
            OpenMMLab file name), or another address that ``mmengine.fileio`` reads.
        who (str): Whose checkpoint it is, for messages.
        mapped (bool): Whether tensors are mapped from the file, to be shared by the processes of a
            machine; they must not be changed. Defaults to False.

    Returns:
        Mapping[str, Tensor]: The state dict, without the 'module.' of a wrapped model.

    Raises:
        ConfigError: It is missing, damaged, holds objects that are not data, or no weights; or it
            cannot be mapped.
    """
    version = (path, mapped, *_size_and_time(path))
    weights = _kept.pop(version, None) or _load(path, who, mapped)
    if _keeping:
        _kept[version] = weights
    return weights


def _size_and_time(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(os.path.expanduser(path))
    except OSError:  # an address, or nothing at all
        return ()
    return status.st_size, status.st_mtime_ns


def _load(path: str, who: str, mapped: bool) -> Mapping[str, torch.Tensor]:
    if mapped and not zipfile.is_zipfile(os.path.expanduser(path)):
        raise ConfigError(
            f'{who}: share_weights=True needs a file on this machine in the format of torch.save, '
            f'and {path} is none (or in the format of before 2020); save it again.'
        )
    try:
        checkpoint = _read(path, mapped)
    except FileNotFoundError:
        raise ConfigError(f'{who}: checkpoint {path} does not exist.') from None
    except pickle.UnpicklingError as error:
        # PyTorch's own message begins with how to switch the protection off.
        refused = re.search(r'(?:GLOBAL|class) ([\w.]+)', str(error))
        if refused is None:
            raise ConfigError(f'{who}: file {path} is no checkpoint, or is damaged.') from error
        raise ConfigError(
            f'{who}: checkpoint {path} holds more than plain data and is not loaded, since '
            f'unpickling it could run code (it asks for {refused[1]}).'
        ) from error
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f'{who}: checkpoint {path} cannot be read, it is damaged, incomplete or out of reach '
            f'({_first_line(error)}).'
        ) from error
    weights = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, Mapping) else {}
    weights = {
        key.removeprefix('module.'): value
        for key, value in weights.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if not weights:
        raise ConfigError(f'{who}: checkpoint {path} holds no state_dict.')
    return weights


def _read(path: str, mapped: bool) -> object:
    # Again: OneDL's mmengine 0.10.12 takes them off the list after a load of its own.
    allow_checkpoint_types()
    if path.startswith(('http://', 'https://')):
        return torch.hub.load_state_dict_from_url(
            path, map_location='cpu', check_hash=True, weights_only=True
        )
    if '://' in path:
        return torch.load(io.BytesIO(fileio.get(path)), map_location='cpu', weights_only=True)
    path = os.path.expanduser(path)
    options = {'mmap': True} if mapped else {}
    return torch.load(path, map_location='cpu', weights_only=True, **options)


def _first_line(error: Exception) -> str:
    return str(error).strip().split('\n')[0]
