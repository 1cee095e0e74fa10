"""The file formats of an exported student: PyTorch's, and safetensors."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors import torch as safetensors
from torch import Tensor

from ..files.checkpoints import read_checkpoint_safely, weights_in


class Format(NamedTuple):
    """How to make a file's bytes of weights and metadata, and to read its weights and config."""

    write: Callable[[dict[str, Tensor], dict], bytes]
    read: Callable[[Path], tuple[Mapping[str, Tensor], str]]


def _write_pth(weights: dict[str, Tensor], meta: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save({'meta': meta, 'state_dict': weights}, buffer)
    return buffer.getvalue()


def _read_pth(path: Path) -> tuple[Mapping[str, Tensor], str]:
    content = read_checkpoint_safely(str(path), 'student')
    return weights_in(content, str(path), 'student'), content['meta']['cfg']


def _write_safetensors(weights: dict[str, Tensor], meta: dict) -> bytes:
    """Write the entries of ``meta`` as metadata: text as it is, anything else as JSON."""
    texts = {key: it if isinstance(it, str) else json.dumps(it) for key, it in meta.items()}
    return safetensors.save(weights, {'format': 'pt', **texts})


def _read_safetensors(path: Path) -> tuple[Mapping[str, Tensor], str]:
    with safe_open(path, framework='pt') as file:
        return safetensors.load_file(path), file.metadata()['cfg']


FORMATS = {
    '.pth': Format(_write_pth, _read_pth),
    '.safetensors': Format(_write_safetensors, _read_safetensors),
}
