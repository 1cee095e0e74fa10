"""``from_pretrained`` of transformers: strict, without pickles, and quick without a network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

from mmengine.logging import print_log
from torch import nn

from ..errors import ConfigError

NAME = 'pretrained_model_name_or_path'


def is_from_pretrained(make: Callable) -> bool:
    """Return whether a callable is ``from_pretrained`` of one of transformers' models."""
    owner = getattr(make, '__self__', None)
    package = str(getattr(owner, '__module__', '')).partition('.')[0]
    is_model = isinstance(owner, type) and (
        issubclass(owner, nn.Module) or hasattr(owner, '_model_mapping')
    )
    return package == 'transformers' and is_model and make.__name__ == 'from_pretrained'


def load_pretrained(make: Callable, options: Mapping) -> nn.Module:
    """Call ``from_pretrained``, and check that the files hold each tensor of the module.

    transformers initialises randomly what they lack, and says so in a table only. Norms may be
    missing: of those that a backbone has for its outputs, no file knows, and they start neutral.
    """
    options = {'use_safetensors': True, **options}
    name = str(options.get(NAME))
    with _quietly(), _asking_the_hub_once(name) as known:
        if known is None:  # there is no network: what earlier downloads left
            options['local_files_only'] = True
        elif not known:  # e.g. a name of timm
            return make(**options)
        module, info = make(**options, output_loading_info=True)
    own = module.state_dict()
    missing = sorted(info['missing_keys'])
    random = [key for key in missing if key not in own or own[key].dim() > 1]
    if random:
        raise ConfigError(
            f'teacher: {name} lacks {len(random)} of the {len(own)} tensors of '
            f'{type(module).__name__} ({", ".join(random[:3])}{", ..." if random[3:] else ""}), '
            f'which would be random; give the directory of this very model.'
        )
    if missing:
        print_log(f'RdimKD: {name} lacks {", ".join(missing)}, which start neutral', 'current')
    return module.float()  # files in half precision are loaded as such


@contextmanager
def _asking_the_hub_once(name: str) -> Iterator[bool | None]:
    """Yield whether a name is a directory or on the hub; None if the hub cannot be reached.

    ``AutoBackbone`` of transformers 5 asks the hub itself, even for a directory, where it fails
    without a network. And each file is asked for 6 times before that is an error.
    """
    from huggingface_hub import HfApi

    known = os.path.isdir(name)
    if not known:
        try:
            known = HfApi().repo_exists(name)
        except Exception:  # of whichever library makes the request
            known = None
    with mock.patch.object(HfApi, 'repo_exists', lambda *args, **options: known is not False):
        yield known


@contextmanager
def _quietly() -> Iterator[None]:
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def explain_name(options: Mapping) -> str:
    """Return the end of a message about a name that is no directory, or ''."""
    name = options.get(NAME)
    if name is None or os.path.isdir(str(name)):
        return ''
    return (
        f"; '{name}' is no directory, so it is looked up on the hub, which takes a network or an "
        f'earlier download; give a directory as save_pretrained writes it'
    )
