"""``ModuleSource``: a teacher that is any torch module, built, or made by a callable."""

from __future__ import annotations

import copy
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from ..errors import ConfigError
from ..features import OUTPUT
from ..files.checkpoints import digest_of, load_checkpoint_safely
from ..files.configs import UnreadableConfigError, as_json
from ..files.strict_loading import load_strictly
from ..options import SCOPE, explain
from ..random_state import preserved_random_state
from .source import checkpoint_facts


class ModuleSource:
    """Any torch module that turns images (N, 3, H, W) into maps.

    Its methods are those of :class:`rdimkd_det.teacher.source.Source`. ``module`` is the module,
    which is copied; or ``type``, an importable callable that returns one (or its dotted path), and
    its keyword arguments. It returns a map, a list or dict of maps, or an object with
    ``feature_maps``. ``mean`` and ``std`` are on the scale of 0 to 255, in its order of channels.
    """

    options = ('module', 'checkpoint', 'mean', 'std', 'bgr')
    model = None
    default_tap = OUTPUT
    whole_taps = (OUTPUT,)
    built_on_meta = False  # a callable may load weights of its own

    def __init__(
        self,
        module: nn.Module | Mapping,
        checkpoint: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bgr: bool = False,
    ) -> None:
        self.name = _name(module)
        _check_statistics(self.name, mean, std)
        if not isinstance(bgr, bool):
            raise ConfigError(f'teacher: bgr must be True or False, got {bgr!r}.')
        self.module = module
        self.checkpoint = None if checkpoint is None else str(checkpoint)
        self.input = {'mean': list(mean), 'std': list(std), 'bgr_to_rgb': not bgr}

    def build(self, taps: Sequence[str] = ()) -> nn.Module:
        """Copy the module, or call the callable, always from the same random state."""
        if isinstance(self.module, nn.Module):
            return copy.deepcopy(self.module).cpu()  # acceleration works in place
        options = {key: v for key, v in self.module.items() if key not in ('type', SCOPE)}
        make = self.module['type']
        try:
            with preserved_random_state():
                torch.manual_seed(0)
                made = (make if callable(make) else pkgutil.resolve_name(make))(**options)
        except Exception as error:  # the user's callable may raise anything
            raise UnreadableConfigError(
                f'teacher: {self.name} cannot be made: {explain(error)}'
            ) from error
        if not isinstance(made, nn.Module):
            raise ConfigError(
                f'teacher: {self.name} returned a {type(made).__name__}; it must return a '
                f'torch.nn.Module.'
            )
        return made.cpu()

    def read_weights(self, mapped: bool) -> Mapping[str, Tensor] | None:
        if self.checkpoint is not None:
            return load_checkpoint_safely(self.checkpoint, who='teacher', mapped=mapped)
        if mapped:
            raise ConfigError(
                f'teacher: share_weights=True maps the weights from a checkpoint, and {self.name} '
                f'has none; give checkpoint=..., or share_weights=False.'
            )
        return None

    def load(self, weights: Mapping[str, Tensor] | None, taps: Sequence[str]) -> nn.Module:
        network = self.build()
        if weights is not None:
            load_strictly(network, weights, self.checkpoint, self.name, 'teacher', assign=True)
        return network.requires_grad_(False).eval()

    def build_preprocessor(self) -> ImgDataPreprocessor:
        """Build a preprocessor of the given normalisation; it pads with the mean."""
        return ImgDataPreprocessor(**self.input)

    def facts(self) -> dict:
        """Return the callable, its arguments, the input, and a hash of checkpoint or weights."""
        own = {} if self.checkpoint else {'checkpoint': None, 'weights': self._own_digest}
        return {**self._facts_without_building(), **own}

    def _facts_without_building(self) -> dict:
        options = {} if isinstance(self.module, nn.Module) else dict(self.module)
        return {
            'module of the teacher': as_json({**options, 'type': self.name}),
            'input of the teacher': as_json(self.input),
            **(checkpoint_facts(self.checkpoint) if self.checkpoint else {}),
        }

    @classmethod
    def given_facts(cls, **entry) -> dict:
        """Return the facts that an entry of a config tells; the module is not built."""
        return cls(**entry)._facts_without_building()

    @cached_property
    def _own_digest(self) -> str:
        state = self.build().state_dict()
        return digest_of({key: it for key, it in state.items() if isinstance(it, Tensor)})


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


def _check_statistics(name: str, mean: object, std: object) -> None:
    if not (_are_three(mean) and _are_three(std) and all(value > 0 for value in std)):
        raise ConfigError(
            f'teacher: {name} needs mean and std of its input, three numbers each on the scale of '
            f'0 to 255, e.g. mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375] for '
            f'networks trained on ImageNet; got mean={mean}, std={std}.'
        )


def _are_three(values: object) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == 3
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
    )
