"""Random states of a process, as plain data that a checkpoint can hold."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

RandomState = dict  # of tensors and numbers only, so that torch.load(weights_only=True) takes it


def random_state() -> RandomState:
    """Return the random states of Python, NumPy and PyTorch, including all GPUs."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        'python': {'version': version, 'words': np.array(words, dtype=np.int64), 'gauss': gauss},
        'numpy': {
            'kind': kind,
            'keys': keys.astype(np.int64),
            'position': position,
            'has_gauss': has_gauss,
            'cached': float(cached),
        },
        'torch': torch.get_rng_state().numpy(),
        'cuda': [state.numpy() for state in _cuda_states()],
    }


def set_random_state(state: RandomState) -> None:
    """Restore the random states that :func:`random_state` returned, but no GPU's that is absent."""
    python, numpy = state['python'], state['numpy']
    random.setstate((python['version'], tuple(python['words'].tolist()), python['gauss']))
    keys = np.asarray(numpy['keys']).astype(np.uint32)
    gauss = numpy['has_gauss'], numpy['cached']
    np.random.set_state((numpy['kind'], keys, numpy['position'], *gauss))
    torch.set_rng_state(torch.as_tensor(state['torch']))
    for device, on_gpu in zip(range(len(_cuda_states())), state['cuda']):
        torch.cuda.set_rng_state(torch.as_tensor(on_gpu), device)


def _cuda_states() -> list[torch.Tensor]:
    # A data loader's worker must not initialise CUDA, and has no random state there.
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore Python's, NumPy's and PyTorch's random states when the block ends."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
