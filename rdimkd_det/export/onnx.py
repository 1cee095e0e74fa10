"""Exports a student to ONNX: from the normalised batch to the raw maps of the head."""

from __future__ import annotations

import inspect
import os
import warnings
from pathlib import Path

import torch
from mmdet.models.detectors import SingleStageDetector
from torch import Tensor, nn

from ..channels import image_channels
from ..errors import ConfigError
from ..files.atomic import write_errors_explained
from ..options import explain
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


def export_onnx(detector: nn.Module, student: Student, path: Path) -> str:
    """Write an ONNX model with free batch size, height and width, and compare it with PyTorch.

    Returns one line with the file and its difference from PyTorch. Preprocessing and classes of
    ``student`` become metadata of the model.

    Raises:
        ConfigError: The detector has no raw maps, cannot be exported or written, or differs too
            much.
    """
    name = student.config.model.type
    if not isinstance(detector, SingleStageDetector):
        raise ConfigError(
            f'--onnx: {name} is no single-stage detector; its head needs more than the image.'
        )
    try:
        with write_errors_explained(path, '--onnx'):
            difference = _write(detector, student, path)
    except ConfigError:
        raise
    except Exception as error:  # an operator that torch.onnx or onnxruntime does not have
        raise ConfigError(f'--onnx: {name} cannot be exported: {explain(error)}') from error
    return f'wrote {path}: onnxruntime and PyTorch differ by {difference:.1e} of the largest value'


def _write(detector: SingleStageDetector, student: Student, path: Path) -> float:
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        _export(detector, temporary)
        _add_metadata(temporary, student)
        difference = compare(detector, temporary)
        if difference > TOLERANCE:
            raise ConfigError(
                f'--onnx: onnxruntime and PyTorch differ by {difference:.1e} of the largest value '
                f'(allowed: {TOLERANCE:.0e}); nothing was written.'
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def _export(detector: SingleStageDetector, path: Path) -> None:
    # Large enough for a second position at stride 128, and for SSD.
    inputs = torch.zeros(1, image_channels(detector), 320, 384)
    names = output_names(detector, inputs)
    free = {0: 'batch', 2: 'height', 3: 'width'}
    of_outputs = {output: {0: 'batch', 2: f'{output}_h', 3: f'{output}_w'} for output in names}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the tracer warns of every shape that it reads
        torch.onnx.export(
            RawMaps(detector).eval(),
            (inputs,),
            str(path),
            input_names=['inputs'],
            output_names=names,
            dynamic_axes={'inputs': free, **of_outputs},
            opset_version=OPSET,
            dynamo=False,
        )


def compare(detector: SingleStageDetector, path: Path) -> float:
    """Return the largest difference of any map, relative to the largest value of that map.

    It is the maximum over two batches, whose sizes differ from that of the export.
    """
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for num, *size in ((1, 384, 320), (2, 320, 448)):
        inputs = torch.randn((num, image_channels(detector), *size), generator=generator)
        with torch.no_grad():
            expected = RawMaps(detector).eval()(inputs)
        found = session.run(None, {'inputs': inputs.numpy()})
        for one, other in zip(expected, found):
            difference = (one - torch.from_numpy(other)).abs().max() / one.abs().max()
            largest = max(largest, float(difference))
    return largest


def _add_metadata(path: Path, student: Student) -> None:
    preprocessor = student.config.model.get('data_preprocessor') or {}
    values = {
        **{key: preprocessor.get(key) for key in ('mean', 'std', 'bgr_to_rgb', 'pad_size_divisor')},
        'classes': student.meta.get('dataset_meta', {}).get('classes'),
    }
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {key: str(value) for key, value in values.items()})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
