"""Small real detectors from MMDetection's own config files, and batches for them."""

from __future__ import annotations

import rdimkd_det  # noqa: F401  # provides mmcv's operators, where they are not compiled

# isort: split
from collections.abc import Iterator, Sequence
from pathlib import Path

import mmdet
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from rdimkd_det.files.configs import open_config

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
CHANNEL_KEYS = ('in_channels', 'out_channels', 'feat_channels', 'conv_out_channels')

register_all_modules(init_default_scope=True)


def small_config(
    name: str, depth: int | None = None, base_channels: int = 8, channels: int = 32, **model
) -> Config:
    """Return a config that ships with MMDetection, with random weights and few channels.

    ResNets and Swins become narrow, and the neck is adjusted; other backbones stay as they are.

    Args:
        name: Path below mmdet's configs, e.g. 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'; or of
            another package, as 'mmyolo::...'.
        depth: Depth of the ResNet; None for that of the file.
        base_channels: Channels of the backbone's stem.
        channels: Channels of the FPN and of the heads.
        **model: Merged into ``model`` at the end, e.g. ``neck=dict(num_outs=3)``.
    """
    config = plain_config(name)
    detector = config.model.get('detector') or config.model  # of a tracker, or to be taught
    backbone, neck = detector.backbone, detector.get('neck')
    kind = backbone.type.split('.')[-1]  # after the scope, if it has one
    if kind in ('ResNet', 'SwinTransformer') and neck is not None:
        if kind == 'ResNet':
            backbone.update(depth=depth or backbone.depth, base_channels=base_channels)
            width = base_channels * (1 if backbone.depth < 50 else 4)
        else:
            width = 3 * base_channels
            backbone.update(embed_dims=width)
        neck.in_channels = [width * 2**stage for stage in backbone.out_indices]
        _narrow(detector, neck.out_channels, channels)
    config.merge_from_dict({'model': model})
    return config


def plain_config(name: str) -> Config:
    """Return a config that ships with MMDetection, without pretrained weights."""
    config = open_config(name if '::' in name else str(CONFIGS / name))
    for child in children(config.model):
        init_cfg = child.get('init_cfg')
        if isinstance(init_cfg, dict) and 'checkpoint' in init_cfg:
            child['init_cfg'] = None
        child.pop('pretrained', None)
    return config


def _narrow(model: dict, old: int, new: int) -> None:
    for child in children({key: part for key, part in model.items() if key != 'backbone'}):
        child.update({key: new for key in CHANNEL_KEYS if child.get(key) == old})
        if 'fc_out_channels' in child:
            child['fc_out_channels'] = new
        if 'stacked_convs' in child:
            child['stacked_convs'] = 1


def children(node: object) -> Iterator[dict]:
    """Yield the dicts in a config, outer ones first."""
    if isinstance(node, dict):
        yield node
        node = node.values()
    if not isinstance(node, (str, int, float, type(None))):
        for child in list(node):
            yield from children(child)


def random_batch(
    num: int = 2,
    size: tuple[int, int] | Sequence[tuple[int, int]] = (96, 128),
    num_boxes: int = 2,
    seed: int = 0,
    num_classes: int = 80,
) -> dict:
    """Return a batch as from a data loader: uint8 images (3, H, W) and their data samples.

    Args:
        num: Number of images.
        size: (H, W) of all images, or one per image, which overrides ``num``.
        num_boxes: Boxes in each image.
        seed: Seed of images and boxes.
        num_classes: Number of classes; labels are below it.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [size] * num if isinstance(size[0], int) else list(size)
    batch = {'inputs': [], 'data_samples': []}
    for index, (height, width) in enumerate(sizes):
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        limit = torch.tensor([width, height])
        corner = torch.rand(num_boxes, 2, generator=generator) * limit / 2
        extent = (0.2 + 0.3 * torch.rand(num_boxes, 2, generator=generator)) * limit
        sample = DetDataSample(
            metainfo={
                'img_id': index,
                'img_path': f'{index}.png',
                'img_shape': (height, width),
                'ori_shape': (height, width),
                'scale_factor': (1.0, 1.0),
                'flip': False,
                'flip_direction': None,
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.cat([corner, corner + extent], 1)),
            labels=torch.randint(num_classes, (num_boxes,), generator=generator),
        )
        sample.ignored_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=torch.zeros(0, dtype=torch.long)
        )
        batch['inputs'].append(image)
        batch['data_samples'].append(sample)
    return batch


def check_training_step(model: torch.nn.Module, batch: dict) -> None:
    """Check the losses and the backbone's gradients of a distilled student in a training step."""
    model.train()
    data = model.data_preprocessor(batch, training=True)
    losses = model(**data, mode='loss')
    total, log_vars = model.parse_losses(losses)
    total.backward()
    assert all(torch.isfinite(value) for value in log_vars.values())
    assert [key for key in losses if key.startswith('loss_rdimkd_neck_s')]
    assert all(losses[key] > 0 for key in losses if 'rdimkd' in key)
    gradients = [p.grad for p in model.backbone.parameters() if p.grad is not None]
    assert gradients and all(grad.isfinite().all() for grad in gradients)
    assert any(grad.abs().sum() > 0 for grad in gradients)


def teacher_files(folder: Path, config: Config, seed: int = 1) -> tuple[str, str]:
    """Write a detector's config file and a checkpoint with random weights.

    Args:
        folder: The folder to write to.
        config: The detector's config.
        seed: Seed of the weights.

    Returns:
        Paths of the config and the checkpoint.
    """
    config_file, checkpoint = str(folder / 'teacher.py'), str(folder / 'teacher.pth')
    config.dump(config_file)
    scope = DefaultScope.overwrite_default_scope(config.get('default_scope'))
    with torch.random.fork_rng(devices=[]), scope:
        torch.manual_seed(seed)
        model = MODELS.build(config.model)
        model.init_weights()
    torch.save({'state_dict': model.state_dict(), 'meta': {'seed': seed}}, checkpoint)
    return config_file, checkpoint
