"""A data set, a student, a teacher and a schedule small enough to train in seconds."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from detectors import teacher_files
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from rdimkd_det.host.patches import allow_checkpoint_types

REPOSITORY = Path(__file__).parents[1]
CLASSES = ('red', 'green', 'blue')


def write_data(root: Path, num_images: int = 8, size: tuple[int, int] = (64, 80)) -> Path:
    """Write a COCO-format data set of coloured rectangles on noise: annotations.json, images."""
    random = np.random.RandomState(0)
    (root / 'images').mkdir(parents=True)
    images, annotations = [], []
    for index in range(num_images):
        image = random.randint(60, 120, (*size, 3)).astype(np.uint8)
        for category in range(2):
            x, y, w, h = (int(v) for v in random.randint([2, 2, 18, 18], [40, 30, 34, 30]))
            color = (category + index) % 3
            image[y : y + h, x : x + w, color] = 250
            annotations.append(
                dict(
                    id=len(annotations),
                    image_id=index,
                    category_id=color,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                )
            )
        name = f'{index}.png'
        cv2.imwrite(str(root / 'images' / name), image)
        images.append(dict(id=index, file_name=name, height=size[0], width=size[1]))
    categories = [dict(id=index, name=name) for index, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'annotations.json').write_text(json.dumps(content))
    return root


def fcos(base_channels: int = 8, fpn_channels: int = 16, norm_eval: bool = False) -> ConfigDict:
    """Return the model config of an FCOS on a thin ResNet-18, with strides 8, 16 and 32."""
    return ConfigDict(
        type='FCOS',
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
            pad_size_divisor=32,
        ),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=base_channels,
            frozen_stages=-1,
            norm_eval=norm_eval,
        ),
        neck=dict(
            type='FPN',
            in_channels=[base_channels * factor for factor in (1, 2, 4, 8)],
            out_channels=fpn_channels,
            start_level=1,
            num_outs=3,
        ),
        bbox_head=dict(
            type='FCOSHead',
            num_classes=len(CLASSES),
            in_channels=fpn_channels,
            feat_channels=16,
            stacked_convs=1,
            strides=[8, 16, 32],
            regress_ranges=((-1, 24), (24, 48), (48, 1e8)),
            norm_cfg=dict(type='GN', num_groups=4),
            center_sampling=True,
        ),
        test_cfg=dict(
            nms_pre=50,
            score_thr=0.0,
            nms=dict(type='nms', iou_threshold=0.6),
            max_per_img=5,
        ),
    )


def write_teacher(folder: Path, **options) -> dict:
    """Write a teacher's config and (random) checkpoint; return ``model.teacher``."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {'base_channels': 16, 'fpn_channels': 24, **options}
    config, checkpoint = teacher_files(folder, Config(dict(model=fcos(**options))))
    return dict(config=config, checkpoint=checkpoint)


def distilled(student: dict, teacher: dict, tap: str = 'neck', **loss) -> ConfigDict:
    """Return the model config of a distilled student, by default with 8 principal directions."""
    loss = {'type': 'RdimKDLoss', 'projection': dict(type='PCAProjection', dim=8), **loss}
    return ConfigDict(type='RdimKDDistiller', student=student, teacher=teacher, losses={tap: loss})


def write_step_config(folder: Path) -> Path:
    """Write a teacher, and a distilled config for training steps, without data; return its path."""
    model = distilled(fcos(), write_teacher(folder / 'teacher'))
    optimizer = dict(type='SGD', lr=0.01)
    config = Config(dict(model=model, optim_wrapper=dict(type='OptimWrapper', optimizer=optimizer),
                         custom_imports=dict(imports=['rdimkd_det']),
                         custom_hooks=[dict(type='DistillHook')]))  # fmt: skip
    config.dump(folder / 'config.py')
    return folder / 'config.py'


def run_config(data: Path, work_dir: Path, model: dict, max_epochs: int = 2, **overrides) -> Config:
    """Return a training's config, with ``DistillHook`` if the model is distilled."""
    loading = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(80, 64), keep_ratio=True),
    ]
    boxes = dict(type='LoadAnnotations', with_bbox=True)
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    dataset = dict(
        type='CocoDataset',
        data_root=str(data),
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES),
    )
    validation = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            dataset,
            test_mode=True,
            pipeline=[*loading, boxes, dict(type='PackDetInputs', meta_keys=meta_keys)],
        ),
    )
    training = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(
            dataset,
            pipeline=[
                *loading,
                boxes,
                dict(type='RandomFlip', prob=0.0),
                dict(type='PackDetInputs'),
            ],
        ),
    )
    evaluator = dict(type='CocoMetric', ann_file=str(data / 'annotations.json'), metric='bbox')
    config = dict(
        default_scope='mmdet',
        custom_imports=dict(imports=['rdimkd_det'], allow_failed_imports=False),
        custom_hooks=[dict(type='DistillHook', calibration_images=8)] if 'student' in model else [],
        work_dir=str(work_dir),
        model=model,
        train_dataloader=training,
        val_dataloader=validation,
        test_dataloader=validation,
        val_evaluator=evaluator,
        test_evaluator=evaluator,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
            clip_grad=dict(max_norm=10),
        ),
        default_hooks=dict(
            timer=dict(type='IterTimerHook'),
            logger=dict(type='LoggerHook', interval=1),
            param_scheduler=dict(type='ParamSchedulerHook'),
            checkpoint=dict(type='CheckpointHook', interval=1),
            sampler_seed=dict(type='DistSamplerSeedHook'),
            visualization=dict(type='DetVisualizationHook'),
        ),
        visualizer=dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        randomness=dict(seed=0),
        load_from=None,
        resume=False,
        log_level='WARNING',
    )
    config = Config(config)
    config.merge_from_dict(overrides)
    return config


def train(config: Config) -> Runner:
    """Train as tools/train.py does, in this process."""
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def trained_losses(work_dir: str) -> list[dict]:
    """The losses that the newest run in a work directory logged, one dict per iteration."""
    newest = max(Path(work_dir).glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in newest.read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if 'loss' in key or key == 'grad_norm'}
        for line in lines
        if 'loss' in line
    ]


def load(path: Path) -> dict:
    """Load a checkpoint, which also checks that ``weights_only=True`` can read it."""
    allow_checkpoint_types()  # OneDL's mmengine removes them from the list again
    return torch.load(path, map_location='cpu', weights_only=True)


def assert_equal(first: dict, second: dict) -> None:
    """Assert that two dicts of tensors are equal bit for bit."""
    assert list(first) == list(second)
    torch.testing.assert_close(dict(first), dict(second), rtol=0, atol=0, equal_nan=True)


def call_tool(name: str, *args: object) -> None:
    """Run tools/<name> in this process; its exceptions, SystemExit included, propagate."""
    tool = REPOSITORY / 'tools' / name
    with _called_as(tool, args):
        runpy.run_path(str(tool), run_name='__main__')


def call_module(name: str, *args: object) -> None:
    """Run ``python -m <name>`` in this process, like :func:`call_tool`."""
    with _called_as(REPOSITORY / f'{name.replace(".", "/")}.py', args):
        runpy.run_module(name, run_name='__main__')


@contextlib.contextmanager
def _called_as(file: Path, args: tuple):
    with (
        mock.patch.object(sys, 'argv', [str(file), *map(str, args)]),
        mock.patch.dict(os.environ, dict(os.environ)),
    ):
        yield


def run_tool(
    name: str, *args: object, processes: int = 0, timeout: float = 600
) -> subprocess.CompletedProcess:
    """Run tools/<name> in its own process, or under torchrun if ``processes`` is given."""
    command = [sys.executable]
    if processes:
        command += ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    tool = name if Path(name).is_absolute() else REPOSITORY / 'tools' / name
    command += [str(tool), *map(str, args)]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output = process.communicate(timeout=timeout)
    except BaseException:
        process.terminate()  # not kill: torchrun ends its workers, which are in their own sessions
        process.wait(60)
        raise
    return subprocess.CompletedProcess(command, process.returncode, *output)


@contextlib.contextmanager
def hidden(*paths: str):
    """Rename files away while the block runs."""
    for path in paths:
        os.rename(path, f'{path}.hidden')
    try:
        yield
    finally:
        for path in paths:
            os.rename(f'{path}.hidden', path)
