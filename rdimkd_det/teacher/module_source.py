"""``ModuleSource``: a teacher that is any torch module, built, or made by a callable."""

from __future__ import annotations

import copy
import math
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from inspect import signature
from pathlib import Path

import torch
from mmengine.config import ConfigDict
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import ConfigError
from ..features import OUTPUT, TOKENS
from ..files.checkpoints import digest_of
from ..files.configs import UnreadableConfigError, as_json
from ..files.strict_loading import load_strictly
from ..options import SCOPE, explain, is_amount
from ..random_state import preserved_random_state
from .fan_out import WAYS
from .key_prefix import without_prefix
from .known_input import KnownInput, known_input
from .pretrained import is_from_pretrained, load_pretrained
from .source import Source, checkpoint_facts
from .tokens import Tokens


class ModuleSource(Source):
    """Any torch module that turns images (N, 3, H, W) into maps, or into tokens of patches.

    ``module`` is the module, which is copied; or ``type``, an importable callable that returns one
    (or its dotted path), and its keyword arguments. It returns a map, a list or dict of maps, an
    object with ``feature_maps``, or tokens (N, L, C). ``mean`` and ``std`` are on the scale of 0 to
    255, in its order of channels; without them, the module's own record is taken. ``input_scale``
    is the side of its images over that of the student's; ``levels`` or ``fan_out`` resize its maps
    to strides of the student, see :mod:`rdimkd_det.teacher.fan_out`.
    """

    default_tap = OUTPUT
    whole_taps = (OUTPUT,)
    built_on_meta = False  # a callable may load weights of its own

    def __init__(
        self,
        module: nn.Module | Mapping,
        checkpoint: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bgr: bool | None = None,
        input_scale: float | None = None,
        levels: Mapping[int, str] | None = None,
        fan_out: bool = False,
    ) -> None:
        self.name = _name(module)
        if mean is not None or std is not None:
            _check_statistics(self.name, mean, std)
        for option, value in (('bgr', bgr), ('fan_out', fan_out)):
            if not isinstance(value, (bool, type(None))):
                raise ConfigError(f'teacher: {option} must be True or False, got {value!r}.')
        if input_scale is not None and not (is_amount(input_scale) and input_scale > 0):
            raise ConfigError(f'teacher: input_scale must be above 0, got {input_scale!r}.')
        self.module = module
        self.checkpoint = None if checkpoint is None else str(checkpoint)
        self.mean, self.std, self.bgr = mean, std, bgr
        self.input_scale = input_scale
        self.levels = None if levels is None else _checked_levels(levels, fan_out)
        self.fan_out = fan_out
        self._tokens = Tokens()
        self._recorded: KnownInput | None = None
        self._built = False
        self._made: nn.Module | None = None  # kept for who looks at it until `load` takes it

    def __getstate__(self) -> dict:
        return {**vars(self), '_made': None}

    @property
    def input(self) -> dict:
        """dict: The input as options of a data preprocessor; builds the module to ask it."""
        if self.mean is not None:
            return {'mean': [*self.mean], 'std': [*self.std], 'bgr_to_rgb': not self.bgr}
        if not self._built:
            self.build()
        if self._recorded is None:
            _check_statistics(self.name, None, None)
        bgr = self._recorded.bgr if self.bgr is None else self.bgr
        return {'mean': self._recorded.mean, 'std': self._recorded.std, 'bgr_to_rgb': not bgr}

    @property
    def input_origin(self) -> str:
        """str: Where mean and std are known from."""
        return 'model.teacher' if self.mean is not None else self._recorded.origin

    def build(self, taps: Sequence[str] = ()) -> nn.Module:
        """Return a copy of the module, or what the callable makes, the same one until :meth:`load`.

        A large model takes long to make. The callable starts from the same random state each time.
        """
        if self._made is None:
            is_built = isinstance(self.module, nn.Module)
            made = copy.deepcopy(self.module) if is_built else self._call()
            if any(map(is_lazy, made.parameters())):
                raise ConfigError(
                    f'teacher: {self.name} has parameters whose shape is known after the first '
                    f'image only; call it once, torch.zeros(1, 3, 64, 64), before it is given.'
                )
            if not self._built:
                self._tokens.read_patch_size(made)
                self._recorded = known_input(made) if self.mean is None else None
                self._built = True
            if isinstance(made, torch.jit.ScriptModule):
                made = nn.Sequential(made)  # TorchScript takes no hooks
            setattr(made, TOKENS, self._tokens)
            self._made = made.cpu().float()  # files in half precision are loaded as such
        return self._made

    def _call(self) -> nn.Module:
        options = ConfigDict(self.module).to_dict()
        make = options.pop('type')
        options.pop(SCOPE, None)
        try:
            make = make if callable(make) else pkgutil.resolve_name(make)
            with preserved_random_state():
                torch.default_generator.manual_seed(0)  # not the seeds that GPUs start with
                made = (
                    load_pretrained(make, options) if is_from_pretrained(make) else make(**options)
                )
        except ConfigError:
            raise
        except Exception as error:  # the user's callable may raise anything
            raise UnreadableConfigError(
                f'teacher: {self.name} cannot be made: {explain(error)}{_remedy(error)}'
            ) from error
        if not isinstance(made, nn.Module):
            raise ConfigError(
                f'teacher: {self.name} returned a {type(made).__name__}; it must return a '
                f'torch.nn.Module.'
            )
        return made

    def read_weights(self, mapped: bool) -> Mapping[str, Tensor] | None:
        if self.checkpoint is not None:
            return super().read_weights(mapped)
        if mapped:
            raise ConfigError(
                f'teacher: share_weights=True maps the weights from a checkpoint, and {self.name} '
                f'has none; give checkpoint=..., or share_weights=False.'
            )
        return None

    def load(self, weights: Mapping[str, Tensor] | None, taps: Sequence[str]) -> nn.Module:
        if weights is None:
            _ = self._own_digest  # before the network is changed
        network, self._made = self.build(), None
        if weights is not None:
            weights = without_prefix(network, weights, self.checkpoint)
            load_strictly(network, weights, self.checkpoint, self.name, 'teacher', assign=True)
        return network.requires_grad_(False).eval()

    def build_preprocessor(self) -> ImgDataPreprocessor:
        """Build a preprocessor of the given normalisation; it pads with the mean."""
        return ImgDataPreprocessor(**self.input)

    def facts(self) -> dict:
        """Return the callable, its arguments, the input, and a hash of checkpoint or weights."""
        own = {} if self.checkpoint else {'checkpoint': None, 'weights': self._own_digest}
        return {**self._facts_without_building(), 'input of the teacher': self._whole_input, **own}

    def _facts_without_building(self) -> dict:
        options = {} if isinstance(self.module, nn.Module) else _without_folders(self.module)
        return {
            'module of the teacher': as_json({**options, 'type': self.name}),
            'input of the teacher': self._given_input if self.mean is None else self._whole_input,
            'levels of the teacher': as_json(self.levels or ('all' if self.fan_out else None)),
            **(checkpoint_facts(self.checkpoint) if self.checkpoint else {}),
        }

    @property
    def _whole_input(self) -> dict:
        return as_json({**self.input, **self._given_scale})

    @property
    def _given_input(self) -> dict:
        """dict: The input, with None for what only the built module tells."""
        rgb = None if self.bgr is None else not self.bgr
        return as_json({'mean': None, 'std': None, 'bgr_to_rgb': rgb, **self._given_scale})

    @property
    def _given_scale(self) -> dict:
        return {} if self.input_scale is None else {'input_scale': self.input_scale}

    @classmethod
    def given_facts(cls, **entry) -> dict:
        """Return the facts that an entry of a config tells; the module is not built."""
        return cls(**entry)._facts_without_building()

    @cached_property
    def _own_digest(self) -> str:
        state = self.build().state_dict()
        return digest_of({key: it for key, it in state.items() if isinstance(it, Tensor)})


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError) and error.name == 'transformers':
        return "; pip install 'rdimkd_det[foundation]'"
    if isinstance(error, ModuleNotFoundError):
        return '; is it on PYTHONPATH?'
    ours = (name for name in signature(ModuleSource).parameters if f"'{name}'" in str(error))
    if isinstance(error, TypeError) and (name := next(ours, None)):
        return (
            f'; {name} is no argument of it but an option of the teacher: write it beside module, '
            f'or after --teacher-options of tools/distill.py'
        )
    return ''


def _name(module: object) -> str:
    """Return the dotted name of a module's class or of the callable that makes one."""
    if isinstance(module, nn.Module):
        return _dotted(type(module))
    kind = module.get('type') if isinstance(module, Mapping) else None
    if isinstance(kind, str) and '.' in kind:
        return kind
    if callable(kind):
        return _dotted(kind)
    raise ConfigError(
        f'teacher: module must be a torch.nn.Module, or a dict whose type is the dotted path of a '
        f"callable that returns one, e.g. dict(type='my_package.make_teacher', depth=50); got "
        f'{module!r}.'
    )


def _dotted(kind: Callable) -> str:
    return f'{kind.__module__}.{getattr(kind, "__qualname__", type(kind).__qualname__)}'


def _without_folders(options: Mapping) -> dict:
    """Return arguments with the names of files and directories alone, which may be moved."""
    return {
        key: Path(value).name if isinstance(value, (str, Path)) else value
        for key, value in options.items()
    }


def directory_of(module: object) -> Path | None:
    """Return the first directory among the arguments of a callable that makes a module."""
    arguments = module.values() if isinstance(module, Mapping) else ()
    paths = (Path(os.path.expanduser(it)) for it in arguments if isinstance(it, (str, Path)))
    return next((path for path in paths if path.is_dir()), None)


def find_licence(directory: Path | None) -> Path | None:
    """Return the licence file in a directory; None if it has none."""
    files = [] if directory is None else [path for path in directory.iterdir() if path.is_file()]
    named = ('licen', 'copying')
    return min((it for it in files if it.name.lower().startswith(named)), default=None)


def _checked_levels(levels: object, fan_out: bool) -> dict[int, str]:
    """Return ``levels`` with whole numbers as keys, which are text where they came from JSON."""
    try:
        checked = {int(stride): way for stride, way in levels.items()}
    except (AttributeError, TypeError, ValueError):
        checked = {}
    if not checked or not {*checked.values()} <= {*WAYS}:
        raise ConfigError(
            f"teacher: levels must be a dict from strides of the student to 'up', 'same' or "
            f"'down', e.g. {{8: 'up', 16: 'same', 32: 'down'}}; got {levels!r}."
        )
    if fan_out:
        raise ConfigError('teacher: fan_out=True makes all levels; give it or levels, not both.')
    return checked


def _check_statistics(name: str, mean: object, std: object) -> None:
    if not (_are_three(mean) and _are_three(std) and all(value > 0 for value in std)):
        raise ConfigError(
            f'teacher: {name} needs mean and std of its input, three numbers each on the scale of '
            f'0 to 255, e.g. mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375] for '
            f'networks trained on ImageNet, unless transformers or timm recorded them with it; got '
            f'mean={mean}, std={std}.'
        )


def _are_three(values: object) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == 3
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
    )
