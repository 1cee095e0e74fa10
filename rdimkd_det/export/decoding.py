"""Decodes the maps of one-stage heads for whole batches, in operators that ONNX has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mmdet.models.dense_heads import GFLHead, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector
from torch import Tensor, nn

from ..errors import ConfigError

Candidates = tuple[Tensor, Tensor, Tensor]
# What a head predicts with. One that has these from mmdet decodes as mmdet does; what else it
# needs (priors, box coder, activations) is called here, and so may be its own.
PREDICTION = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')


def known_decoding(detector: nn.Module) -> Callable[..., Candidates]:
    """Return the function that decodes like a detector's head.

    Called with the head, its maps, the score threshold (0-dim) and the size of the images (2,), as
    height and width, it returns boxes (N, B, 4), scores (N, B) and labels (N, B) of B candidates
    per image; a score below the threshold is 0.

    Raises:
        ConfigError: It is no single-stage detector, or its head predicts in its own way.
    """
    head = getattr(detector, 'bbox_head', None)
    if isinstance(detector, SingleStageDetector):
        own = [getattr(type(head), name, None) for name in PREDICTION]
        decoders = {BaseDenseHead: decode_dense, GFLHead: decode_dense, YOLOXHead: decode_yolox}
        for owner, decode in decoders.items():
            if own == [getattr(owner, name) for name in PREDICTION]:
                return decode
    what = type(detector).__name__ + (f' ({type(head).__name__})' if head is not None else '')
    raise ConfigError(
        f'--end-to-end: {what} predicts in a way of its own; only FCOS, RetinaNet, ATSS, GFL, '
        f'RTMDet, YOLOX and detectors that decode like them are decoded in ONNX. For others see '
        f'https://github.com/open-mmlab/mmdeploy.'
    )


def decode_dense(
    head: BaseDenseHead, maps: Sequence[Sequence[Tensor]], threshold: Tensor, size: Tensor
) -> Candidates:
    """Decode like ``BaseDenseHead._predict_by_feat_single``, or ``GFLHead``'s.

    At each level the ``nms_pre`` best pairs of position and class are candidates.
    """
    priors = _priors(head, maps[0])
    factors = maps[2] if len(maps) > 2 else [None] * len(priors)
    levels = [
        _decode_level(head, level, *of_level, threshold)
        for level, of_level in enumerate(zip(maps[0], maps[1], factors, priors))
    ]
    boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*levels))
    if getattr(head.bbox_coder, 'clip_border', True):
        boxes = torch.minimum(boxes.clamp(min=0), size.flip(0).repeat(2).to(boxes))
    return boxes, scores, labels


def _decode_level(
    head: BaseDenseHead,
    level: int,
    cls_score: Tensor,
    bbox_pred: Tensor,
    factor: Tensor | None,
    priors: Tensor,
    threshold: Tensor,
) -> Candidates:
    logits = _flat(cls_score, head.cls_out_channels)
    scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]
    # Before the factor, e.g. centerness, is multiplied.
    scores = torch.where(scores > threshold, scores, scores.new_zeros(())).flatten(1)
    limit, number = head.test_cfg.get('nms_pre', -1), length(scores)
    number = number if limit < 1 else torch.minimum(torch.tensor(limit), number)
    scores, best = scores.topk(number, dim=1)
    position = torch.div(best, head.num_classes, rounding_mode='floor')
    priors = priors[position]
    if factor is not None:
        scores = scores * _flat(factor, 1).sigmoid().squeeze(-1).gather(1, position)
    if isinstance(head, GFLHead):
        preds = _pick(_flat(bbox_pred, 4 * (head.reg_max + 1)), position)
        stride = head.prior_generator.strides[level][0]
        preds = head.integral(preds).reshape(preds.shape[0], -1, 4) * stride
        priors = head.anchor_center(priors)
    else:
        preds = _pick(_flat(bbox_pred, head.bbox_coder.encode_size), position)
    return head.bbox_coder.decode(priors, preds), scores, best % head.num_classes


def decode_yolox(
    head: YOLOXHead, maps: Sequence[Sequence[Tensor]], threshold: Tensor, size: Tensor
) -> Candidates:
    """Decode like ``YOLOXHead.predict_by_feat``: each position has one class; boxes may stand out.

    All positions are candidates.
    """
    priors = torch.cat(_priors(head, maps[0], with_stride=True))
    widths = head.cls_out_channels, 4, 1
    cls_scores, bbox_preds, objectness = (
        torch.cat([_flat(of_level, width) for of_level in kind], 1)
        for kind, width in zip(maps, widths)
    )
    scores, labels = cls_scores.sigmoid().max(-1)
    scores = scores * objectness.sigmoid().squeeze(-1)
    scores = torch.where(scores >= threshold, scores, scores.new_zeros(()))
    return head._bbox_decode(priors, bbox_preds), scores, labels


def length(values: Tensor) -> Tensor:
    """Return the size of dimension 1, 0-dim; in a traced graph it stays an expression."""
    return torch._shape_as_tensor(values)[1]


def _priors(head: nn.Module, maps: Sequence[Tensor], **options) -> list[Tensor]:
    sizes = [of_level.shape[-2:] for of_level in maps]
    first = maps[0]
    return head.prior_generator.grid_priors(
        sizes, dtype=first.dtype, device=first.device, **options
    )


def _flat(maps: Tensor, width: int) -> Tensor:
    """Return maps (N, P * width, H, W) as (N, H * W * P, width)."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, width)


def _pick(values: Tensor, position: Tensor) -> Tensor:
    """Return the rows (N, K, D) of values (N, B, D) at positions (N, K)."""
    return values.gather(1, position[..., None].expand(-1, -1, values.shape[-1]))
