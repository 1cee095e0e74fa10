"""A student's config in pure Python: saved with distillation, trained, exported."""

import textwrap

import pytest
from runs import call_tool, write_data, write_teacher

STUDENT = """
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.models import FCOS, FPN, DetDataPreprocessor, FCOSHead, ResNet
from mmengine.dataset.sampler import DefaultSampler
from mmengine.optim import OptimWrapper
from mmengine.runner.loops import EpochBasedTrainLoop
from torch.optim import SGD

model = dict(
    type=FCOS,
    data_preprocessor=dict(
        type=DetDataPreprocessor, mean=[110.0] * 3, std=[57.0] * 3, pad_size_divisor=32
    ),
    backbone=dict(
        type=ResNet, depth=18, base_channels=8, frozen_stages=-1, norm_eval=False
    ),
    neck=dict(
        type=FPN, in_channels=[8, 16, 32, 64], out_channels=16, start_level=1, num_outs=3
    ),
    bbox_head=dict(
        type=FCOSHead, num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1,
        strides=[8, 16, 32], regress_ranges=((-1, 24), (24, 48), (48, 1e8)),
        norm_cfg=dict(type='GN', num_groups=4),
    ),
    test_cfg=dict(nms_pre=50, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.6),
                  max_per_img=5),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=CocoDataset,
        data_root='ROOT',
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('red', 'green', 'blue')),
        pipeline=[
            dict(type=LoadImageFromFile),
            dict(type=LoadAnnotations, with_bbox=True),
            dict(type=Resize, scale=(80, 64), keep_ratio=True),
            dict(type=PackDetInputs),
        ],
    ),
)
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))
default_scope = 'mmdet'
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pure')
    data = write_data(folder / 'data')
    (folder / 'student.py').write_text(textwrap.dedent(STUDENT).replace('ROOT', str(data)))
    teacher = write_teacher(folder / 'teacher')
    call_tool(
        'distill.py', folder / 'student.py', teacher['config'], teacher['checkpoint'],
        '--save-config', folder / 'distilled.py', '--dim', 8,
    )  # fmt: skip
    return folder


def test_save_config__what_is_written_trains(folder, tmp_path):
    call_tool('train.py', folder / 'distilled.py', '--work-dir', tmp_path)
    assert (tmp_path / 'epoch_1.pth').is_file()
    assert sorted(path.name for path in folder.glob('.*')) == []


def test_export__types_of_the_hosts_packages(folder, tmp_path):
    call_tool('train.py', folder / 'distilled.py', '--work-dir', tmp_path)
    checkpoint = tmp_path / 'epoch_1.pth'
    call_tool('export_student.py', checkpoint, '--out', tmp_path / 'beside.pth')
    call_tool('export_student.py', checkpoint, '--out', tmp_path / 'given.pth',
              '--config', folder / 'student.py')  # fmt: skip
    assert list(tmp_path.glob('beside-*.pth')) and list(tmp_path.glob('given-*.pth'))
