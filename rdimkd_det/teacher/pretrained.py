"""``from_pretrained`` of transformers: strict, without pickles, and quick without a network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from mmengine.logging import print_log
from torch import nn

from ..errors import ConfigError
from ..files.configs import UnreadableConfigError
from ..options import listed

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
    if NAME in options:  # transformers takes '~' for a name on the hub
        options[NAME] = os.path.expanduser(options[NAME])
    name = str(options.get(NAME))
    _check_directory(name, options)
    with _quietly(), _asking_the_hub_once(name) as known:
        if known is False:  # e.g. a name of timm
            return make(**options)
        if known is None:  # the hub cannot be reached: what earlier downloads left
            options['local_files_only'] = True
        try:
            module, info = make(**options, output_loading_info=True)
        except OSError as error:
            if known:
                raise
            raise UnreadableConfigError(
                f"teacher: '{name}' is no directory, the hub cannot be reached, and no earlier "
                f'download of it is here; give a directory as save_pretrained writes it.'
            ) from error
    own = module.state_dict()
    missing = sorted(info['missing_keys'])
    random = [key for key in missing if key not in own or own[key].dim() > 1]
    if random:
        raise ConfigError(
            f'teacher: {name} lacks {len(random)} of the {len(own)} tensors of '
            f'{type(module).__name__} ({listed(random)}), '
            f'which would be random; give the directory of this very model'
            f'{", and add_pooling_layer=False" * all("pooler" in key for key in random)}.'
        )
    if missing:
        print_log(f'RdimKD: {name} lacks {", ".join(missing)}, which start neutral', 'current')
    return module


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


def _check_directory(name: str, options: Mapping) -> None:
    path = Path(name)
    if not path.is_dir():
        # A name on the hub has one slash at most, and no path begins like it.
        if path.is_absolute() or name.startswith(('.', '~')) or name.count('/') > 1:
            raise UnreadableConfigError(f'teacher: the directory {name} does not exist.')
    elif options['use_safetensors'] and not any(path.glob('*.safetensors')):
        pickles = sorted(it.name for it in path.glob('*.bin'))
        if pickles:
            raise ConfigError(
                f'teacher: {name} has its weights in pickles ({", ".join(pickles[:3])}), which are '
                f'not read; where you trust them, let save_pretrained write model.safetensors.'
            )
