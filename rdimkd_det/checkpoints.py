"""Reading checkpoints without running code from them."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections.abc import Mapping

import torch
from mmengine import fileio

from .compat import allow_checkpoint_types
from .errors import ConfigError


def load_checkpoint_safely(path: str, who: str) -> Mapping[str, torch.Tensor]:
    """Weights of a checkpoint, see :func:`read_checkpoint_safely`.

    Args:
        path (str): The checkpoint.
        who (str): Whose checkpoint it is, for messages.

    Returns:
        Mapping[str, Tensor]: The state dict, without the 'module.' of a wrapped model.

    Raises:
        ConfigError: It cannot be read, or holds no weights.
    """
    return weights_of(read_checkpoint_safely(path, who), path, who)


def weights_of(checkpoint: object, path: str, who: str) -> Mapping[str, torch.Tensor]:
    """Weights in a checkpoint that has been read, see :func:`load_checkpoint_safely`."""
    weights = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, Mapping) else {}
    weights = {
        key.removeprefix('module.'): value
        for key, value in (weights.items() if isinstance(weights, Mapping) else ())
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if not weights:
        raise ConfigError(f'{who}: checkpoint {path} holds no state_dict.')
    return weights


def read_checkpoint_safely(path: str, who: str) -> object:
    """A whole checkpoint, unpickled with the allow-list of PyTorch and ``compat`` only.

    Args:
        path (str): A path, an http(s) URL (downloaded once, its hash compared with the one in an
            OpenMMLab file name), or another address that ``mmengine.fileio`` reads.
        who (str): Whose checkpoint it is, for messages.

    Raises:
        ConfigError: It is missing, damaged, or holds objects that are not data.
    """
    try:
        return _read(path)
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


def _read(path: str) -> object:
    # Again: OneDL's mmengine 0.10.12 takes them off the list after a load of its own.
    allow_checkpoint_types()
    if path.startswith(('http://', 'https://')):
        return torch.hub.load_state_dict_from_url(
            path, map_location='cpu', check_hash=True, weights_only=True
        )
    if '://' in path:
        return torch.load(io.BytesIO(fileio.get(path)), map_location='cpu', weights_only=True)
    return torch.load(os.path.expanduser(path), map_location='cpu', weights_only=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().split('\n')[0]
