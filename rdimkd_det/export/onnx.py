"""Exports a student to ONNX: from the normalised batch to the raw maps of the head."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from mmdet.models.detectors import SingleStageDetector
from torch import Tensor, nn

from ..channels import image_channels
from ..errors import ConfigError
from ..files.atomic import write_errors_explained
from ..options import explained
from .student import Student

try:
    import onnx
    import onnxruntime
except ImportError as error:
    raise ConfigError(
        f'--onnx needs packages that are not installed ({error.name}): '
        f'pip install "rdimkd_det[onnx]".'
    ) from error

OPSET = 17
# Large enough for a second position at stride 128, and for SSD.
TRACED_SIZE = (320, 384)
COMPARED_BATCHES = ((1, 384, 320), (2, 320, 448))  # images, height, width
# Largest difference between onnxruntime and PyTorch, as a share of the largest value of a map.
TOLERANCE = 1e-4


class RawMaps(nn.Module):
    """A single-stage detector, in eval mode, as a function of one tensor."""

    def __init__(self, detector: SingleStageDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the head (N, C, H, W), kind by kind and level by level."""
        return tuple(feats for kind in self.detector(inputs, mode='tensor') for feats in kind)


def output_names(detector: SingleStageDetector, inputs: Tensor) -> list[str]:
    """Return the names of the head's maps: mmdet's own names and the level, as 'cls_scores_0'."""
    with torch.no_grad():
        kinds = detector(inputs, mode='tensor')
    # In every head of mmdet, loss_by_feat takes the outputs of forward, in this order.
    names = inspect.signature(detector.bbox_head.loss_by_feat).parameters
    return [f'{name}_{level}' for name, kind in zip(names, kinds) for level in range(len(kind))]


def check_raw_maps(detector: nn.Module, student: Student) -> None:
    """Raise a ``ConfigError`` if a detector cannot have raw maps, whatever its weights."""
    if not isinstance(detector, SingleStageDetector):
        raise ConfigError(
            f'--onnx: {student.config.model.type} is no single-stage detector; its head needs more '
            f'than the image.'
        )


def export_onnx(
    detector: nn.Module, student: Student, path: Path, write: Callable[..., str] | None = None
) -> str:
    """Write an ONNX model with free batch size, height and width, and compare it with PyTorch.

    ``write`` is a function like :func:`write_raw_maps`, the default. Returns one line with the
    file and the result of the comparison.

    Raises:
        ConfigError: The detector cannot be exported or written, or differs too much.
    """
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.part')
    # E.g. for an operator that torch.onnx or onnxruntime does not have.
    refused = explained(f'--onnx: {student.config.model.type} cannot be exported')
    try:
        with refused, write_errors_explained(path, '--onnx'):
            result = (write or write_raw_maps)(detector, student, temporary)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    return f'wrote {path}: {result}'


def write_raw_maps(detector: SingleStageDetector, student: Student, path: Path) -> str:
    """Write the model of the head's raw maps, and return how it compares with PyTorch."""
    check_raw_maps(detector, student)
    inputs = torch.zeros(1, image_channels(detector), *TRACED_SIZE)
    names = output_names(detector, inputs)
    free = {output: {0: 'batch', 2: f'{output}_h', 3: f'{output}_w'} for output in names}
    trace(RawMaps(detector), {'inputs': inputs}, free, path)
    _add_metadata(path, student)
    difference = compare(detector, path)
    if not difference <= TOLERANCE:  # NaN, too
        raise ConfigError(
            f'--onnx: onnxruntime and PyTorch differ by {difference:.1e} of the largest value '
            f'(allowed: {TOLERANCE:.0e}); nothing was written.'
        )
    return f'onnxruntime and PyTorch differ by {difference:.1e} of the largest value'


def trace(
    module: nn.Module, images: dict[str, Tensor], free_outputs: dict[str, dict], path: Path
) -> None:
    """Write the ONNX model of a module, for batches of images of any number, height and width.

    ``images`` is one example, by the input's name; ``free_outputs`` are the names of the outputs,
    each with its free dimensions and their names.
    """
    free = {name: {0: 'batch', 2: 'height', 3: 'width'} for name in images}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the tracer warns of every shape that it reads
        torch.onnx.export(
            module.eval(),
            tuple(images.values()),
            str(path),
            input_names=list(images),
            output_names=list(free_outputs),
            dynamic_axes={**free, **free_outputs},
            opset_version=OPSET,
            dynamo=False,
        )


def run_session(model: bytes | str) -> onnxruntime.InferenceSession:
    """Start a model, a file or its content, on the CPU."""
    return onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])


def compare(detector: SingleStageDetector, path: Path) -> float:
    """Return the largest difference of any map, relative to the largest value of that map.

    It is the maximum over two batches, whose sizes differ from that of the export; NaN if a map has
    one.
    """
    session = run_session(str(path))
    generator = torch.Generator().manual_seed(0)
    differences = []
    for num, *size in COMPARED_BATCHES:
        inputs = torch.randn((num, image_channels(detector), *size), generator=generator)
        with torch.no_grad():
            expected = RawMaps(detector).eval()(inputs)
        found = session.run(None, {'inputs': inputs.numpy()})
        for one, other in zip(expected, found):
            difference = (one - torch.from_numpy(other)).abs().max()
            differences.append(difference / one.abs().max().clamp(min=torch.finfo(one.dtype).tiny))
    return float(torch.stack(differences).max())


def _add_metadata(path: Path, student: Student) -> None:
    preprocessor = student.config.model.get('data_preprocessor') or {}
    values = {
        **{key: preprocessor.get(key) for key in ('mean', 'std', 'bgr_to_rgb', 'pad_size_divisor')},
        'classes': student.meta.get('dataset_meta', {}).get('classes'),
    }
    save_with_metadata(onnx.load(str(path)), {key: str(it) for key, it in values.items()}, path)


def save_with_metadata(model: onnx.ModelProto, values: dict[str, str], path: Path) -> None:
    """Check a model, and write it with metadata."""
    onnx.helper.set_model_props(model, values)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
