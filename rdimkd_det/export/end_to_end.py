"""Exports a student to an ONNX model that detects: from 8-bit images to suppressed boxes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..channels import image_channels
from ..errors import ConfigError
from ..preflight.classes import data_classes
from .decoding import known_decoding, length
from .onnx import COMPARED_BATCHES, TRACED_SIZE, run_session, save_with_metadata, trace
from .recipe import input_recipe
from .student import Student, generated_image, predict_images, with_every_box

# Options of mmcv's NMS that the graph has too, or that change no result.
NMS_OPTIONS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
# The same detection: sides in pixels, score.
BOX_TOLERANCE, SCORE_TOLERANCE = 0.5, 1e-3
# Of each generated image the best are compared. Scores of untrained weights are nearly equal, so
# that rounding may change which of two boxes suppresses the other.
BEST, LEAST_SAME = 100, 0.95
OUTPUTS = ('boxes', 'scores', 'labels', 'image_index')


class Detections(nn.Module):
    """Preprocessor, detector, decoding and suppression, as the detector itself predicts.

    ``score_threshold`` is a buffer, so that it has this name in the ONNX model.

    Raises:
        ConfigError: The detector decodes or suppresses in a way that is not known here.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.decode = known_decoding(detector)
        self.detector = detector
        cfg = detector.bbox_head.test_cfg
        self.nms = _known_suppression(cfg.get('nms'))
        self.max_per_img = cfg.get('max_per_img')  # YOLOX has none
        self.min_bbox_size = cfg.get('min_bbox_size', -1)
        self.register_buffer('score_threshold', torch.tensor(float(cfg.get('score_thr', 0))))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect in images (N, 3, H, W), uint8, in the order of channels that mmdet reads: BGR.

        Returns boxes (M, 4) in pixels, as x1, y1, x2, y2; scores (M,); labels (M,); and the index
        of the image of each (M,). They are ordered by image, and by falling score.
        """
        maps = self.detector(preprocess(self.detector.data_preprocessor, images), mode='tensor')
        boxes, scores, labels = self.decode(
            self.detector.bbox_head, maps, self.score_threshold, torch._shape_as_tensor(images)[2:]
        )
        if self.min_bbox_size >= 0:
            scores = scores * (boxes[..., 2:] - boxes[..., :2] > self.min_bbox_size).all(-1)
        limit = length(scores) if self.max_per_img is None else torch.tensor(self.max_per_img)
        apart = self._classes_apart(boxes, scores, labels)
        kept = NonMaxSuppression.apply(apart, scores[:, None], limit, self.nms['iou_threshold'])
        image, candidate = kept[:, 0], kept[:, 2]
        found = (values[image, candidate] for values in (boxes, scores, labels))
        return *found, image

    def _classes_apart(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Move the boxes of each class away from the others, as mmcv's ``batched_nms`` does."""
        if self.nms.get('class_agnostic'):
            return boxes
        largest = torch.where(scores[..., None] > 0, boxes, boxes.new_zeros(())).amax()
        return boxes + (labels * (largest + 1))[..., None]


class NonMaxSuppression(torch.autograd.Function):
    """ONNX's operator: of boxes (N, B, 4) with scores (N, 1, B) above 0, (M, 3): image, 0, box."""

    @staticmethod
    def forward(ctx, boxes: Tensor, scores: Tensor, limit: Tensor, iou_threshold: float) -> Tensor:
        return torch.zeros(1, 3, dtype=torch.long)  # the module is only traced, never run

    @staticmethod
    def symbolic(g, boxes, scores, limit, iou_threshold: float):
        limit = g.op('Reshape', limit, g.op('Constant', value_t=torch.tensor([1])))
        iou_threshold, score_threshold = (
            g.op('Constant', value_t=torch.tensor([value])) for value in (iou_threshold, 0.0)
        )
        return g.op('NonMaxSuppression', boxes, scores, limit, iou_threshold, score_threshold)


def preprocess(preprocessor: nn.Module, images: Tensor) -> Tensor:
    """Do what mmengine's ``ImgDataPreprocessor`` does to a batch of images of one size."""
    if preprocessor._channel_conversion:
        images = images.flip(1)
    images = images.float()
    if preprocessor._enable_normalize:
        images = (images - preprocessor.mean) / preprocessor.std
    divisor = preprocessor.pad_size_divisor
    if divisor == 1:
        return images
    height, width = images.shape[2:]
    margins = (0, -width % divisor, 0, -height % divisor)
    return F.pad(images, margins, value=float(preprocessor.pad_value))


def _known_suppression(options: Mapping | None) -> dict:
    options = dict(options or {})
    if options.get('type') != 'nms' or 'iou_threshold' not in options or {*options} - NMS_OPTIONS:
        raise ConfigError(
            f'--end-to-end: test_cfg.nms is {options}; ONNX suppresses only with '
            f"dict(type='nms', iou_threshold=...); give a config with it: --config."
        )
    return options


def check_detector(detector: nn.Module, student: Student) -> None:
    """Raise a ``ConfigError`` if a detector cannot detect in ONNX, whatever its weights."""
    Detections(detector)
    if (channels := image_channels(detector)) != 3:
        raise ConfigError(
            f'--end-to-end: the detector takes images of {channels} channels, but the model takes '
            f'image files of 3; export raw maps: --onnx without --end-to-end.'
        )
    input_recipe(student.config)


def write_detector(detector: nn.Module, student: Student, path: Path) -> str:
    """Write the model that detects, and return how it compares with MMDetection."""
    images = torch.zeros(1, 3, *TRACED_SIZE, dtype=torch.uint8)
    trace(Detections(detector), {'images': images}, {it: {0: 'detections'} for it in OUTPUTS}, path)
    model = onnx.load(str(path))
    recorded = student.meta.get('dataset_meta', {}).get('classes')
    values = {
        'input': input_recipe(student.config),
        'classes': recorded or data_classes(student.config, ('test', 'val', 'train')),
    }
    save_with_metadata(model, {key: json.dumps(it) for key, it in values.items()}, path)
    same, compared = compare(model, student)
    if same < LEAST_SAME * compared:
        raise ConfigError(
            f'--end-to-end: of {compared} detections on generated images only {same} are those of '
            f'MMDetection; nothing was written.'
        )
    if not compared:
        return 'nothing is detected on generated images, so no detection is compared'
    return f'{same} of {compared} detections on generated images are those of MMDetection'


def compare(model: onnx.ModelProto, student: Student) -> tuple[int, int]:
    """Count the detections that a model and MMDetection both make, and those of either.

    The images are generated; the scores have no threshold, and the best of each image count.
    """
    for tensor in model.graph.initializer:
        if tensor.name == 'score_threshold':
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(0), tensor.name))
    session, detector = run_session(model.SerializeToString()), with_every_box(student).build()
    same = compared = 0
    for num, *size in COMPARED_BATCHES:
        images = [generated_image(size, seed) for seed in range(num)]
        outputs = session.run(None, {'images': torch.stack(images).numpy()})
        for index, predicted in enumerate(predict_images(detector, images)):
            expected = [predicted[name] for name in ('bboxes', 'scores', 'labels')]
            found = [torch.from_numpy(it[outputs[3] == index]) for it in outputs[:3]]
            for these, others in ((found, expected), (expected, found)):
                best = [it[:BEST] for it in these]
                same += int(agreeing(best, others).sum())
                compared += len(best[0])
    return same, compared


def agreeing(these: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Tell which of these detections are among the others, within half a pixel and 1e-3 of score.

    Both are boxes (M, 4), scores (M,) and labels (M,).
    """
    boxes, scores, labels = ((a[:, None] - b).abs() for a, b in zip(these, others))
    return ((boxes <= BOX_TOLERANCE).all(-1) & (scores <= SCORE_TOLERANCE) & (labels == 0)).any(1)
