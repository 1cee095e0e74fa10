"""Reading checkpoints without running code from them."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine import fileio
from mmengine.runner import checkpoint as host
from safetensors import torch as safetensors

from ..errors import ConfigError, counted_from
from ..host.patches import allow_checkpoint_types
from ..options import did_you_mean
from .atomic import sha256_of

# OpenMMLab's and torchvision's file names end with the first digits of the file's SHA-256.
HASH = re.compile(r'-([a-f0-9]{8,64})\.')

# Entries of a file that a message lists.
LISTED = 8

# mmengine's schemes for published weights, and the functions that return their URLs.
NAMED_WEIGHTS = {
    'torchvision://': host.get_torchvision_models,
    'modelzoo://': host.get_torchvision_models,
    'open-mmlab://': host.get_external_models,
    'openmmlab://': host.get_external_models,
    'mmcls://': host.get_mmcls_models,
}


def load_checkpoint_safely(path: str, who: str, mapped: bool = False) -> Mapping[str, torch.Tensor]:
    """Load the weights of a checkpoint, see :func:`read_checkpoint_safely`.

    Args:
        path (str): The checkpoint.
        who (str): Whose checkpoint it is, for messages.
        mapped (bool): Whether to memory-map the tensors, so that the processes of a machine share
            them; they must not be modified. Defaults to False.

    Returns:
        Mapping[str, Tensor]: The state dict, without the prefix 'module.' of a wrapped model.

    Raises:
        ConfigError: The checkpoint cannot be read, or holds no weights.
    """
    return weights_in(read_checkpoint_safely(path, who, mapped), path, who)


def weights_in(checkpoint: object, path: str, who: str) -> Mapping[str, torch.Tensor]:
    """Return the weights in a checkpoint's content, see :func:`load_checkpoint_safely`."""
    weights = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, Mapping) else {}
    weights = {
        key.removeprefix('module.'): value
        for key, value in (weights.items() if isinstance(weights, Mapping) else ())
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if not weights:
        raise ConfigError(f'{who}: checkpoint {path} holds no state_dict{_held(checkpoint)}.')
    return weights


def dataset_meta_of(meta: Mapping) -> Mapping:
    """Return the metainfo of the data set in the ``meta`` of a checkpoint; {} if it has none.

    mmdet (3.3.0, OneDL 3.5.1) writes a list for a ConcatDataset of parts that differ: its first
    counts.
    """
    found = meta.get('dataset_meta')
    first = next(iter(found), None) if isinstance(found, (list, tuple)) else found
    return first if isinstance(first, Mapping) else {}


def _held(content: object) -> str:
    """Return the end of a message: what a file holds, and how to save the weights among it."""
    if not isinstance(content, Mapping):
        return f', but a {type(content).__name__}'
    if not content:
        return ', it is empty'
    kinds, weights = [], None
    for key, value in list(content.items())[:LISTED]:
        tensors = value.values() if isinstance(value, Mapping) else ()
        number = sum(isinstance(it, torch.Tensor) for it in tensors)
        weights = weights or (key if number else None)
        kinds.append(f"'{key}' ({f'{number} tensors' if number else type(value).__name__})")
    others = ', ...' if len(content) > LISTED else ''
    remedy = f"; save content['{weights}'] to a file of its own" if weights else ''
    return f', but {", ".join(kinds)}{others}{remedy}'


def read_checkpoint_safely(path: str, who: str, mapped: bool = False) -> object:
    """Read all of a checkpoint; only types that PyTorch and ``host.patches`` allow are unpickled.

    Args:
        path (str): A path; an http(s) URL or one of mmengine's names, e.g. 'torchvision://resnet50'
            (downloaded once, and checked against the hash in its file name); or another URL that
            ``mmengine.fileio`` reads. A name that ends with '.safetensors' is read as such.
        who (str): Whose checkpoint it is, for messages.
        mapped (bool): See :func:`load_checkpoint_safely`. Defaults to False.

    Raises:
        ConfigError: The checkpoint is missing or damaged, holds objects that are not data, or
            cannot be mapped.
    """
    try:
        return _read(_address(str(path), who), who, mapped)
    except FileNotFoundError:
        raise ConfigError(
            f'{who}: checkpoint {path} does not exist.{counted_from(str(path))}'
        ) from None
    except IsADirectoryError:
        raise ConfigError(f'{who}: checkpoint {path} is a directory; give a file in it.') from None
    except pickle.UnpicklingError as error:
        # PyTorch's own message begins with how to switch the protection off.
        refused = re.search(r'(?:GLOBAL|class|function|type) ([\w.]+\.\w+)', str(error))
        if refused is None:
            raise ConfigError(f'{who}: file {path} is no checkpoint, or is damaged.') from error
        raise ConfigError(
            f'{who}: checkpoint {path} holds more than plain data and is not loaded, since '
            f'unpickling it could run code (it asks for {refused[1]}).'
        ) from error
    except ConfigError:
        raise
    except Exception as error:  # on damaged data, PyTorch's unpickler may raise anything
        reason = str(error).strip().split('\n')[0] or type(error).__name__
        raise ConfigError(
            f'{who}: checkpoint {path} cannot be read, it is damaged, incomplete or out of reach '
            f'({reason}).'
        ) from error


def _address(path: str, who: str) -> str:
    """Return the URL behind one of mmengine's names; any other path is returned as it is."""
    scheme = next((scheme for scheme in NAMED_WEIGHTS if path.startswith(scheme)), None)
    if scheme is None:
        return path
    name = path[len(scheme) :]
    try:
        addresses = NAMED_WEIGHTS[scheme]()
    except ImportError as error:
        raise ConfigError(
            f'{who}: checkpoint {path} needs torchvision: pip install torchvision.'
        ) from error
    name = host.get_deprecated_model_names().get(name, name)
    if name not in addresses:
        raise ConfigError(f'{who}: checkpoint {path} is not known{did_you_mean(name, addresses)}.')
    return addresses[name]


def _read(path: str, who: str, mapped: bool) -> object:
    # Repeated, since OneDL's mmengine 0.10.12 removes the types after each load of its own.
    allow_checkpoint_types()
    if path.startswith(('http://', 'https://')):
        path = download(path)
    is_safe = path.endswith('.safetensors')
    if '://' in path:
        content = fileio.get(path)
        if is_safe:
            return safetensors.load(content)
        return torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
    path = os.path.expanduser(path)
    if is_safe:
        # Mapped only on request: the file could be written anew during a training.
        return safetensors.load_file(path) if mapped else safetensors.load(Path(path).read_bytes())
    if mapped and not zipfile.is_zipfile(path):
        raise ConfigError(
            f'{who}: share_weights=True needs a file on this machine in the format of torch.save, '
            f'or of safetensors, and {path} is none (or of before 2020); save it again.'
        )
    options = {'mmap': True} if mapped else {}
    return torch.load(path, map_location='cpu', weights_only=True, **options)


def download(url: str) -> str:
    """Download a file once, to where torch and mmengine look for it, and check its hash.

    Returns its path. mmengine (0.10.7, OneDL 0.10.12) checks no hash, and torch only that of a new
    download.

    Raises:
        RuntimeError: The hash differs from the one in the file name; the file has been removed.
    """
    path = hub_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        torch.hub.download_url_to_file(url, str(path), progress=False)
    wanted = HASH.search(path.name)
    if wanted is not None:
        found = sha256_of(path)
        if not found.startswith(wanted[1]):
            path.unlink()
            raise RuntimeError(
                f'its SHA-256 begins with {found[:8]}, its name says {wanted[1]}; the file has '
                f'been removed'
            )
    return str(path)


def digest_of(weights: Mapping[str, torch.Tensor], parts: Collection[str] = ()) -> str:
    """Return a SHA-256 of the learned tensors of a state dict, whatever file holds them.

    ``parts`` are the first names of the keys that count, e.g. 'backbone'; all if there are none.
    Integers, such as BatchNorm's counters, are not learned, and half precision counts as its value.
    """
    digest = hashlib.sha256()
    for key, value in sorted(weights.items()):
        if value.is_floating_point() and (not parts or key.split('.')[0] in parts):
            digest.update(f'{key} {tuple(value.shape)}'.encode())
            flat = value.detach().float().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def digest_of_file(checkpoint: str, parts: Collection[str] = ()) -> str | None:
    """Return :func:`digest_of` a checkpoint's weights; None if it is not on this machine."""
    path = local_path(checkpoint)
    if not path.is_file():
        return None
    # Mapped, so that the optimizer in it is not read.
    mapped = path.suffix == '.safetensors' or zipfile.is_zipfile(path)
    return digest_of(load_checkpoint_safely(str(path), who='teacher', mapped=mapped), parts)


def local_path(checkpoint: str) -> Path:
    """Return the path that a checkpoint, a path or URL, has here, whether or not it exists."""
    if checkpoint.startswith(('http://', 'https://')):
        return hub_path(checkpoint)
    return Path(checkpoint).expanduser()


def hub_path(url: str) -> Path:
    """Return the path to which :func:`download` saves a file."""
    return Path(torch.hub.get_dir(), 'checkpoints', os.path.basename(urlparse(url).path))
