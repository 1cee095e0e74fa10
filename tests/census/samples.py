"""Batches with all that a detector of MMDetection may ask of its data."""

from __future__ import annotations

import copy
from pathlib import Path

import detectors
import numpy as np
import torch
from mmdet.structures import TrackDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData

WORD = 'object'
CLASSES = ('num_classes', 'num_things_classes')


def batch_for(config: Config, side: int) -> dict:
    """Return a batch of two images in the form that a detector takes.

    Small ones differ in size; some detectors (YOLACT) take one size only.
    """
    model = config.model
    known = [part[key] for part in detectors.children(model) for key in CLASSES if part.get(key)]
    numbers = [number for each in known for number in np.atleast_1d(each).tolist()]
    sizes = [(96, side), (side, 112)] if side == 128 else [(side, side)] * 2
    num_classes = min(numbers, default=80)
    batch = detectors.random_batch(size=sizes, num_classes=num_classes)
    for image, sample in zip(batch['inputs'], batch['data_samples']):
        _annotate(sample, *image.shape[1:])
        if not _loads_masks(config):
            del sample.gt_instances.masks
        sample.set_metainfo(dict(text=(WORD,) * num_classes, custom_entities=True))
    kind = (model.get('data_preprocessor') or {}).get('type', '')
    if 'Track' in kind:
        return _as_videos(batch)
    if 'MultiBranch' in kind:
        return _as_branches(batch)
    return batch


def _loads_masks(config: Config) -> bool:
    loading = [it for it in detectors.children(config._cfg_dict) if 'Load' in str(it.get('type'))]
    return any(it.get('with_mask', 'Panoptic' in it['type']) for it in loading)


def _annotate(sample: object, height: int, width: int) -> None:
    instances = sample.gt_instances
    boxes = instances.bboxes.tensor
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    instances.masks = BitmapMasks(masks, height, width)
    instances.instances_ids = torch.arange(len(boxes))
    sample.proposals = InstanceData(bboxes=boxes.clone(), scores=torch.ones(len(boxes)))
    classes = torch.from_numpy(masks.max(0, keepdims=True).astype(np.int64))
    sample.gt_sem_seg = PixelData(sem_seg=classes)


def _as_videos(batch: dict) -> dict:
    """Make each image a video of two frames, the key frame and one to refer to."""
    samples = []
    for sample in batch['data_samples']:
        # The pipelines of tracking give plain boxes.
        sample.gt_instances.bboxes = sample.gt_instances.bboxes.tensor
        frames = [copy.deepcopy(sample) for _ in range(2)]
        video = TrackDataSample(metainfo=dict(key_frames_inds=[0], ref_frames_inds=[1]))
        video.video_data_samples = frames
        samples.append(video)
    return {'inputs': [torch.stack([it] * 2) for it in batch['inputs']], 'data_samples': samples}


def _as_branches(batch: dict) -> dict:
    """Make it a batch of semi-supervised training: labels, and two views of unlabelled images."""
    branches = ('sup', 'unsup_teacher', 'unsup_student')
    samples = {name: copy.deepcopy(batch['data_samples']) for name in branches}
    for name in branches[1:]:
        for sample in samples[name]:
            sample.set_metainfo({'homography_matrix': np.eye(3, dtype=np.float32)})
    return {'inputs': {name: batch['inputs'] for name in branches}, 'data_samples': samples}


def tiny_bert(folder: Path) -> str:
    """Write a BERT of one layer with random weights, in the place of a downloaded one."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(exist_ok=True)
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', '?', WORD]
    (folder / 'vocab.txt').write_text('\n'.join(words))
    BertTokenizer(str(folder / 'vocab.txt')).save_pretrained(folder)
    config = BertConfig(vocab_size=len(words), num_hidden_layers=1, intermediate_size=64)
    BertModel(config).save_pretrained(folder)
    return str(folder)
