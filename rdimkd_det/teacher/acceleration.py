"""Options that make the frozen teacher faster, and how each changes the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.logging import print_log
from torch import Tensor, nn

from ..channels import image_channels
from ..errors import ConfigError
from ..features import OUTPUT, SIZE_ERRORS, record_outputs
from ..host.patches import cuda_autocast_dtype
from ..options import type_name

DTYPES = {'fp32': None, 'fp16': torch.float16, 'bf16': torch.bfloat16}
# Largest deviation of a faster network's maps, relative to the largest value of the original map.
TOLERANCE = 1e-4
# Side in pixels of the image used for this check: small, because it runs at every start.
CHECK_SIZE = 64


@dataclass(frozen=True)
class Acceleration:
    """Teacher options that affect speed and memory, and change the maps by rounding only."""

    fuse: bool = True  # fold each BatchNorm into the convolution before it
    channels_last: bool = True  # memory format
    precision: str = 'auto'  # also of the returned maps; 'auto' is the student's autocast on a GPU
    compile: bool = False  # backbone and neck, with dynamic shapes
    own_stream: bool = False  # in parallel with the student's forward pass, on a GPU
    share_weights: bool = False  # between the processes of a machine, memory-mapped; CPU only

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool) and not isinstance(value, bool):
                raise ConfigError(f'teacher: {field.name} must be True or False, got {value!r}.')
        if self.precision not in ('auto', *DTYPES):
            raise ConfigError(
                f"teacher: precision must be 'auto', 'fp32', 'fp16' or 'bf16', got "
                f'{self.precision!r}.'
            )
        if self.share_weights and (self.fuse or self.channels_last):
            raise ConfigError(
                'teacher: share_weights=True needs fuse=False and channels_last=False, which copy '
                'the weights in each process.'
            )
        if self.share_weights and DTYPES.get(self.precision):
            raise ConfigError(
                f'teacher: share_weights=True shares the weights as the checkpoint has them, and '
                f'precision={self.precision!r} gives each process converted ones of its own; take '
                f"precision='fp32' or 'auto', or share_weights=False."
            )

    def dtype(
        self, device: torch.device, of_training: torch.dtype | None = None
    ) -> torch.dtype | None:
        """Return the half precision to run in on a device, or None for float32.

        'auto' uses that ``of_training`` outside of the training's autocast.
        """
        if self.precision == 'auto':
            return (cuda_autocast_dtype() or of_training) if device.type == 'cuda' else None
        if self.precision == 'fp16' and device.type == 'cpu':
            raise ConfigError("teacher: precision='fp16' needs a GPU; take 'auto', or 'bf16'.")
        return DTYPES[self.precision]


def training_dtype(cfg: Mapping) -> torch.dtype | None:
    """Return the half precision that a training's autocast uses, or None for float32."""
    options = cfg.get('optim_wrapper') or {}
    if type_name(options) != 'AmpOptimWrapper':
        return None
    dtype = options.get('dtype') or 'float16'
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    return dtype if dtype in DTYPES.values() else None


def accelerate(
    build: Callable[[], nn.Module], options: Acceleration, taps: Sequence[str]
) -> nn.Module:
    """Build a frozen network, and apply the options that keep its maps at the taps."""
    steps = [fuse_conv_bn] if options.fuse else []
    steps += [_channels_last] if options.channels_last else []
    network = _apply_harmless(steps, build, taps) if steps else build()
    network.requires_grad_(False).eval()  # folding creates new parameters and modules
    # Dynamic shapes: one or two compilations for all input sizes instead of one per size.
    if options.compile and OUTPUT in taps:
        return torch.compile(network, dynamic=True)
    if options.compile:
        for name, child in list(network.named_children()):
            setattr(network, name, torch.compile(child, dynamic=True))
    return network


def _apply_harmless(
    steps: Sequence[Callable], build: Callable[[], nn.Module], taps: Sequence[str]
) -> nn.Module:
    """Build a network and apply all steps, one or none, whichever first preserves its maps.

    Folding relies on the order in which modules are declared, and deformable convolution assumes
    contiguous memory, so either step can change the maps. An image of noise reveals it.
    """
    network = build()
    expected = _maps_of_noise(network, taps)
    for chosen in (steps, *([step] for step in steps)) if expected else ():
        if _agree(_maps_of_noise(network, taps, chosen), expected):
            left_out = [step.__name__.strip('_') for step in steps if step not in chosen]
            if left_out:
                print_log(f'RdimKD: this teacher does not support {left_out[0]}', 'current')
            return network
        network = build()  # steps work in place
    if not expected:  # what fails at an image may leave its traces, as in transformers' Swin
        network = build()
    print_log('RdimKD: this teacher runs as it is, neither fused nor in channels_last', 'current')
    return network


@torch.no_grad()
def _maps_of_noise(
    network: nn.Module, taps: Sequence[str], steps: Sequence[Callable] = ()
) -> list[Tensor] | None:
    """Apply the steps and return the maps of a noise image, or None if the network cannot run."""
    shape = (1, image_channels(network), CHECK_SIZE, CHECK_SIZE)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        for step in steps:
            step(network)
        with torch.autocast('cpu', enabled=False), record_outputs(network, taps) as outputs:
            network(image)
    except ConfigError:  # a missing tap
        raise
    except SIZE_ERRORS:
        return None
    return [maps for tap in taps for maps in outputs[tap]]


def _agree(found: Sequence[Tensor] | None, expected: Sequence[Tensor]) -> bool:
    return found is not None and all(
        bool((a - b).abs().max() <= TOLERANCE * b.abs().max()) for a, b in zip(found, expected)
    )


def _channels_last(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)


def lower_precision(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast in place the weights that autocast would otherwise cast at every forward pass."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.to(dtype)
