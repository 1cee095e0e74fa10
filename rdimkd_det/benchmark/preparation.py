"""Preparation of a training's config for the benchmark, without pretrained weights or data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import FUNCTIONS
from mmengine.structures import InstanceData
from torch import nn

from ..channels import image_channels
from ..commands.checks import check_model, check_sections
from ..commands.optimization import check_optimizer
from ..errors import ConfigError
from ..files.configs import mappings, read_detector_config
from ..host.registry import enter_scope

NUM_BOXES = 4


def prepare(cfg: Config, random_teacher: Path | None = None) -> None:
    """Check a config, and change it in place so that it can be measured on this machine.

    A checkpoint of random weights, written to ``random_teacher``, replaces the teacher's own.
    """
    check_sections(cfg)
    if not (cfg.get('optim_wrapper') or {}).get('optimizer'):
        raise ConfigError(
            f'{cfg.filename} has no optim_wrapper with an optimizer, so there is no training step.'
        )
    check_optimizer(cfg)
    if not isinstance(cfg.get('model'), dict) or not isinstance(cfg.model.get('teacher'), dict):
        raise ConfigError(f'{cfg.filename} has no model with one teacher; nothing to compare.')
    if cfg.model.teacher.get('cache') is not None:
        raise ConfigError(
            'model.teacher.cache is set, and the benchmark measures the live teacher; add '
            '--cfg-options model.teacher.cache=None, or, in a clone of the repository, run '
            'python -m experiments.teacher_cache.'
        )
    if cfg.model.teacher.get('module') is not None:
        raise ConfigError(
            'model.teacher is a module, and the benchmark also measures a teacher with its head; '
            'give the config of a detector.'
        )
    enter_scope(cfg)
    student = cfg.model.get('student') or {}
    if student.get('data_preprocessor'):
        student.data_preprocessor.batch_augments = None  # keep the requested size of the batch
    for entry in mappings(student):
        # The initial weights do not matter here, and pretrained ones may need a download.
        entry.pop('init_cfg', None)
    if random_teacher is not None:
        teacher = MODELS.build(read_detector_config(cfg.model.teacher.get('config')))
        cfg.model.teacher.checkpoint = str(random_teacher)
        torch.save(teacher.state_dict(), random_teacher)
    if get_device() == 'cpu':
        cfg.optim_wrapper.type = 'OptimWrapper'  # without mixed precision
        for option in ('loss_scale', 'dtype'):
            cfg.optim_wrapper.pop(option, None)
    cfg.optim_wrapper.optimizer.lr = 0.0  # the same step over and over
    if not check_model(cfg, training=True).distill.has_weight:
        raise ConfigError(
            'each loss_weight in model.losses is 0, so there is no distillation to measure; e.g. '
            '--cfg-options model.losses.neck.loss_weight=1.'
        )


def batch_for(
    model: nn.Module, num: int, shape: tuple[int, int], collate: Mapping | None = None
) -> dict:
    """Return a batch of noise images with a few objects each, in the format of a data loader.

    ``collate`` is its ``collate_fn``. The objects have the boxes and masks that a detector needs;
    some use masks whenever there are any.
    """
    height, width = shape
    corners = torch.rand(NUM_BOXES, 2) * torch.tensor([width / 2, height / 2])
    objects = InstanceData(
        bboxes=HorizontalBoxes(torch.cat([corners, corners + min(shape) / 4], 1)),
        labels=torch.zeros(NUM_BOXES, dtype=torch.long),
    )
    # The heads of some rotated detectors are MMDetection's, with a coder or assigner of MMRotate.
    parts = [it for module in model.modules() for it in (module, *vars(module).values())]
    if any(type(part).__module__.startswith('mmrotate.') for part in parts):
        objects.bboxes = objects.bboxes.convert_to('rbox')
    if model.with_mask:
        everywhere = np.ones((NUM_BOXES, height, width), np.uint8)
        objects.masks = BitmapMasks(everywhere, height, width)
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
    sample.gt_instances, sample.ignored_instances = objects, objects[:0]
    channels = image_channels(model)
    items = [
        {
            'inputs': torch.randint(256, (channels, height, width), dtype=torch.uint8),
            'data_samples': sample.clone(),
        }
        for _ in range(num)
    ]
    options = dict(collate or {'type': 'pseudo_collate'})
    return FUNCTIONS.get(options.pop('type'))(items, **options)
