"""Taps that record feature maps of a network, and FPN levels matched by stride."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import ceil, lcm, log2

import torch
from torch import Tensor, nn

from .channels import image_channels
from .errors import ConfigError
from .options import explain

# The first is cheap and large enough to distinguish strides up to 256. SSD's extra layers have no
# padding and reduce a small image to nothing, so larger sizes follow, and the usual sizes of
# vision transformers that take one size only.
PROBE_SIZES = (256, 384, 512, 224, 640, 1024)
# Every neck accepts images whose sides are multiples of it.
SAFE_DIVISOR = 32
# The tap that stands for the output of a whole network.
OUTPUT = '(output)'
# The attribute of a network that knows how tokens (N, L, C) lie on the image.
TOKENS = 'rdimkd_tokens'
# What a network raises that does not take images of a size, or images alone.
SIZE_ERRORS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class ProbeError(ConfigError):
    """A network fails on the blank images of all probe sizes."""


@dataclass(frozen=True)
class Level:
    """One feature map of a tap."""

    index: int  # among the feature maps that the tapped module returns
    stride: int  # input pixels per position
    channels: int
    image: int = field(default=PROBE_SIZES[0], compare=False)  # side of the image it is measured on


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network; the CPU if it has neither parameters nor buffers."""
    return next(chain(network.parameters(), network.buffers()), torch.empty(0)).device


@contextmanager
def record_outputs(network: nn.Module, taps: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Record the feature maps (N, C, H, W) that modules return while the block runs, by tap.

    The network's attribute :data:`TOKENS`, if it has one, makes maps of tokens: a
    :class:`rdimkd_det.teacher.tokens.Tokens`.
    """
    outputs: dict[str, list[Tensor]] = {}
    tokens = getattr(network, TOKENS, None)
    modules = {tap: find_module(network, tap) for tap in taps}
    handles = [
        module.register_forward_hook(partial(_record, outputs, tap, tokens))
        for tap, module in modules.items()
    ]
    if tokens is not None:
        handles.append(network.register_forward_pre_hook(tokens.note_image))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _record(
    outputs: dict, tap: str, tokens: object, module: nn.Module, args: tuple, output: object
) -> None:
    tensors = tensors_of(output)
    outputs[tap] = [it for it in tensors if it.dim() == 4]
    if tokens is not None:
        whole = tokens.channels_first(tap, outputs[tap])
        outputs[tap] = whole or tokens.as_maps(tap, tensors)


def tensors_of(output: object) -> list[Tensor]:
    """Return the tensors in a module's output, in its ``feature_maps``, or in lists in it."""
    output = getattr(output, 'feature_maps', output)
    if isinstance(output, Tensor):
        output = [output]
    elif isinstance(output, Mapping):
        output = output.values()
    parts = [*output] if isinstance(output, Iterable) else []
    found = [it for it in parts if isinstance(it, Tensor)]
    # RT-DETR of transformers has a list of maps in its encoder's output, and DETR pairs with masks.
    return found or [m for it in parts if isinstance(it, (list, tuple)) for m in tensors_of(it)]


def find_module(network: nn.Module, tap: str, what: str = 'tap') -> nn.Module:
    """Return the module at a path; the network itself for :data:`OUTPUT`.

    ``what`` is the option that names it, for the message.
    """
    if tap == OUTPUT:
        return network
    try:
        module = network.get_submodule(tap)
    except AttributeError:
        module = None
    if module is None or module is network:
        children = dict(network.named_children())
        # Trackers and semi-supervised detectors hold detectors, and give these batches of theirs.
        inside = [name for name, child in children.items() if hasattr(child, 'extract_feat')]
        hint = f'; distil a detector alone, such as its {" or ".join(inside)}' if inside else ''
        raise ConfigError(
            f"{what} '{tap}': {_name(network)} has no such module; it has "
            f'{", ".join(map(repr, children))}{hint}.'
        )
    return module


@torch.no_grad()
def probe_levels(network: nn.Module, taps: Sequence[str]) -> dict[str, list[Level]]:
    """Measure strides and channels of the feature maps at taps, on one small blank image.

    The network runs in eval mode; the modes of its modules are restored.
    """
    with _in_eval(network):
        size, outputs = _outputs_of_blank(network, taps)
    for tap in taps:
        if not outputs.get(tap):
            raise ConfigError(_without_maps(network, tap, size))
        for maps in outputs[tap]:
            if maps.shape[2] != maps.shape[3]:
                raise ConfigError(
                    f"tap '{tap}': of a square image, {_name(network)} gives a map of shape "
                    f'{tuple(maps.shape)}, which is not (N, C, H, W); permute maps (N, H, W, C), '
                    f'or tap a module before those that make anything else.'
                )
    return {
        tap: [
            Level(index, round(size / maps.shape[2]), maps.shape[1], size)
            for index, maps in enumerate(outputs[tap])
        ]
        for tap in taps
    }


def maps_of_blank(
    network: nn.Module, taps: Sequence[str], sizes: Sequence[int] = ()
) -> dict[str, list[Tensor]]:
    """Return the feature maps of a blank image in eval mode, with gradients if they are on."""
    with _in_eval(network):
        return _outputs_of_blank(network, taps, sizes)[1]


@contextmanager
def _in_eval(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def size_divisor(network: nn.Module, divisor: int, levels: Sequence[Level]) -> int:
    """Return the divisor that the sides of a network's images must have, a multiple of its own.

    The neck of RTMDet concatenates maps whose sizes match only if its data pipeline has padded, and
    vision transformers take whole patches. ``levels`` are measured ones.
    """
    size, safe = levels[0].image, lcm(divisor, SAFE_DIVISOR)
    whole = lcm(divisor, *(level.stride for level in levels))
    for candidate in (divisor, *sorted({whole, safe})):
        try:
            _outputs_of_blank(network, (), [size + candidate])
            return candidate
        except ProbeError:
            continue
    return safe if size % safe == 0 else whole  # it takes this one size


@torch.no_grad()
def leaves_edges_out(network: nn.Module, tap: str, levels: Sequence[Level]) -> bool:
    """Return whether a network's maps end before an image whose side is no multiple of strides.

    Patch embeddings without padding drop the pixels that fill no patch.
    """
    step = lcm(*(level.stride for level in levels))
    side = levels[0].image // step * step + 1
    try:
        _, outputs = _outputs_of_blank(network, [tap], [side])
    except ProbeError:
        return False
    return any(outputs[tap][it.index].shape[2] * it.stride < side for it in levels)


def _outputs_of_blank(
    network: nn.Module, taps: Sequence[str], sizes: Sequence[int] = ()
) -> tuple[int, dict]:
    """Return the side of the smallest blank image that a network accepts, and the taps' maps."""
    device, channels = device_of(network), image_channels(network)
    # Of a detector, only what makes features runs.
    extract = network if OUTPUT in taps else getattr(network, 'extract_feat', network)
    sizes = sizes or getattr(getattr(network, TOKENS, None), 'probe_sizes', PROBE_SIZES)
    for size in sizes:
        try:
            with record_outputs(network, taps) as outputs:
                image = torch.zeros(1, channels, size, size, device=device)
                extract(image)
                return size, outputs
        except (ConfigError, NotImplementedError):  # a missing tap or operator fails at every size
            raise
        except SIZE_ERRORS as error:
            reason = error
    name = _name(network)
    raise ProbeError(
        f'{name}: no features can be extracted from blank images of {channels} '
        f'channel{"s" * (channels > 1)} and {", ".join(map(str, sizes))} pixels: '
        f'{explain(reason)}'
    ) from reason


def _name(network: nn.Module) -> str:
    return getattr(network, 'display_name', type(network).__name__)


def _without_maps(network: nn.Module, tap: str, size: int) -> str:
    name = _name(network)
    if tap != OUTPUT:
        is_detector = hasattr(network, 'extract_feat')
        others = "'neck' or 'backbone'" if is_detector else 'another module inside of it'
        return (
            f"tap '{tap}' gives no feature maps (N, C, H, W) when {name} extracts features; tap "
            f'{others}.'
        )
    output = network(torch.zeros(1, image_channels(network), size, size, device=device_of(network)))
    parts = output.values() if isinstance(output, Mapping) else output
    single = isinstance(parts, (Tensor, str)) or not isinstance(parts, Iterable)
    parts = [parts] if single else parts
    given = [str(tuple(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in parts]
    return (
        f'{name} returns no feature maps (N, C, H, W), but {", ".join(given) or "nothing"}; let it '
        f'return maps (timm: features_only=True), or name a module inside of it: '
        f"teacher_module='...' in its loss, or --teacher-tap of tools/distill.py."
    )


def match_levels(
    student: Sequence[Level], teacher: Sequence[Level], where: str, nearest: bool = False
) -> list[tuple[Level, Level]]:
    """Match student and teacher levels by stride, in ascending order, whatever their index.

    Where a model has several levels of one stride, the last one is used. With ``nearest``, if no
    stride is common, strides may differ by a factor of at most 2; the maps must then be resized.
    """
    of_student = {level.stride: level for level in student}
    of_teacher = {level.stride: level for level in teacher}
    pairs = [(stride, stride) for stride in sorted(of_student.keys() & of_teacher.keys())]
    if not pairs and nearest:
        closest = {s: min(of_teacher, key=lambda t: abs(log2(t / s))) for s in sorted(of_student)}
        pairs = [(s, t) for s, t in closest.items() if abs(log2(t / s)) <= 1]
    if not pairs:
        raise ConfigError(
            f'{where}: no level has a common stride: the student has strides '
            f'{sorted(of_student)}, the teacher {sorted(of_teacher)}; if the '
            f'teacher is a module, fan_out=True or input_scale in model.teacher makes one.'
        )
    return [(of_student[s], of_teacher[t]) for s, t in pairs]


def crop_to_common(
    student: Tensor, teacher: Tensor, student_stride: int = 1, teacher_stride: int = 1
) -> tuple[Tensor, Tensor]:
    """Crop two maps (N, C, H, W) to the part of the image that both cover.

    Both maps start at the image's first pixel, but one extends further if its model pads the batch
    more. After cropping, maps of the same stride have the same size.
    """
    strides, sizes = (student_stride, teacher_stride), zip(student.shape[2:], teacher.shape[2:])
    covered = [min(s * strides[0], t * strides[1]) for s, t in sizes]
    cropped = []
    for maps, stride in zip((student, teacher), strides):
        height, width = (ceil(pixels / stride) for pixels in covered)
        cropped.append(maps[:, :, :height, :width])
    return tuple(cropped)
