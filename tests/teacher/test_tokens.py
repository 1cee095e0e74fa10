"""Tokens of a vision transformer become maps, whatever its patch and prefix; toy networks."""

import pytest
import torch
from detectors import random_batch
from mmdet.registry import MODELS
from runs import distilled, fcos
from torch import nn

from rdimkd_det import ConfigError
from rdimkd_det.features import OUTPUT
from rdimkd_det.preflight.module_teacher import check_strides
from rdimkd_det.preflight.report import Report
from rdimkd_det.teacher import ModuleSource, Teacher
from rdimkd_det.teacher.build import build_teacher

INPUT = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


class Patches(nn.Module):
    """Tokens of patches, which must fill the image, behind a prefix."""

    def __init__(self, patch, prefix=1, give=lambda tokens: tokens, tells=False):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, patch, patch)
        self.prefix, self.give = prefix, give
        if tells:
            self.patch_size = (patch, patch)

    def forward(self, images):
        patch = self.embed.kernel_size[0]
        assert not any(side % patch for side in images.shape[2:]), 'patches must fill the image'
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        prefix = tokens.new_full((len(tokens), self.prefix, 8), 7.0)
        return self.give(torch.cat([prefix, tokens], 1))


def teacher_of(module, strides=(8, 16, 32), **options):
    preprocessor = MODELS.build(fcos()).data_preprocessor
    entry = dict(module=module, **INPUT, **options)
    return build_teacher(entry, {'neck': {}}, preprocessor, strides)[0]


@pytest.mark.parametrize('tells', [False, True])
@pytest.mark.parametrize('patch, prefix', [(14, 1), (14, 5), (16, 5), (16, 0), (13, 2)])
def test_tokens__of_rectangles(patch, prefix, tells):
    """Images of 90x150 pixels have 6x10 positions of stride 16, at any patch size."""
    if patch == 13 and not tells:  # no usual image is filled by its patches
        with pytest.raises(ConfigError, match='Patches: no features can be extracted from blank'):
            teacher_of(Patches(patch, prefix))
        return
    module = Patches(patch, prefix, tells=tells)
    teacher = teacher_of(module)
    [level] = teacher.probe()[OUTPUT]
    assert (level.stride, level.channels) == (16, 8)
    images = torch.randn(2, 3, 90, 150)
    [maps] = teacher(images)[OUTPUT]
    padded = nn.functional.pad(images, (0, 10, 0, 6))
    if patch != 16:
        size = (6 * patch, 10 * patch)
        padded = nn.functional.interpolate(padded, size, mode='bilinear', antialias=True)
    torch.testing.assert_close(maps, module.embed(padded), atol=1e-5, rtol=1e-5)


def test_tokens__in_a_dict_or_at_a_module_inside():
    images = torch.randn(1, 3, 64, 96)
    of_dict = Patches(16, give=lambda tokens: {'last': tokens, 'pooled': tokens[:, 0]})
    found = teacher_of(of_dict)(images)[OUTPUT]
    assert [maps.shape for maps in found] == [(1, 8, 4, 6)]
    pooled = nn.Sequential(Patches(16), nn.AdaptiveAvgPool2d((1, 3)))
    source = ModuleSource(pooled, **INPUT)
    [maps] = Teacher(source, ['0'])(images)['0']
    assert maps.shape == (1, 8, 4, 6)


def test_scale__twice_the_patches():
    """At input_scale=2 a patch of 16 is one of 8 pixels of the student."""
    teacher = teacher_of(Patches(16), input_scale=2)
    assert [level.stride for level in teacher.probe()[OUTPUT]] == [8]
    assert teacher(torch.randn(1, 3, 90, 150))[OUTPUT][0].shape[2:] == (12, 19)
    assert 'input_scale=2' in repr(teacher.bridge)


def test_fan_out__a_level_for_each_stride_of_the_student():
    model = MODELS.build(
        distilled(
            fcos(),
            dict(module=Patches(14), fan_out=True, precision='bf16', **INPUT),
            projection=dict(type='RandomProjection', dim=4),
        )
    )
    data = model.train().data_preprocessor(random_batch(size=(90, 150), num_classes=3), True)
    losses = model.loss(data['inputs'], data['data_samples'])
    assert all(losses[f'loss_rdimkd_neck_s{stride}'] > 0 for stride in (8, 16, 32))
    loss = model.distill.losses['neck']
    assert not torch.equal(loss.projections[0].basis, loss.projections[1].basis)


@pytest.mark.parametrize('fan_out, severity', [(False, 'warning'), (True, 'ok')])
def test_preflight__levels_that_the_teacher_has_no_map_for(fan_out, severity):
    teacher = dict(module=Patches(16), fan_out=fan_out, **INPUT)
    projection = dict(type='RandomProjection', dim=4)
    model = MODELS.build(distilled(fcos(), teacher, projection=projection))
    report = Report('')
    check_strides(model.distill.per_teacher[0], report, 'Teacher strides')
    [found] = report.findings
    assert found.severity == severity
    told = "16; the student's levels of stride 8, 32 learn nothing"
    assert fan_out or (found.text == told and 'fan_out=True' in found.remedy)


def test_image_scale__the_student_sees_images_of_half_the_size():
    """Its strides of 8, 16 and 32 are ones of 16, 32 and 64 pixels of the pipeline's images."""
    teacher = dict(module=Patches(14), levels={8: 'same', 32: 'down'}, image_scale=2, **INPUT)
    model = MODELS.build(
        distilled(fcos(), teacher, projection=dict(type='RandomProjection', dim=4))
    )
    assert [it.stride for it in model.distill.teacher.probe()[OUTPUT]] == [16, 64]
    assert [it.stride for pair in model.distill.level_pairs['neck'] for it in pair] == [
        8,
        8,
        32,
        32,
    ]
    data = model.train().data_preprocessor(random_batch(size=(180, 300), num_classes=3), True)
    losses = model.loss(data['inputs'], data['data_samples'])
    names = {name for name in losses if 'rdimkd' in name}
    assert names == {'loss_rdimkd_neck_s8', 'loss_rdimkd_neck_s32'}


@pytest.mark.parametrize(
    'give, message',
    [
        (lambda tokens: tokens[:, 0], r'Patches returns no feature maps .*, but \(1, 8\); let it'),
        (lambda tokens: tokens.new_zeros(1, 77, 8), r'but \(1, 77, 8\); let it'),
        (lambda tokens: tokens.new_zeros(1, 100, 8), r'100 tokens of an image of 64x64 pixels are'),
        (lambda tokens: 'no maps', r'but str; let it return maps'),
    ],
)
def test_mistakes__what_is_no_map(give, message):
    module = Patches(16, give=give)
    with pytest.raises(ConfigError, match=message):
        teacher_of(module).build()


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(input_scale=0), 'input_scale must be above 0, got 0'),
        (dict(input_scale=0.9), 'makes of its stride of 16 pixels one of 17.7778'),
        (dict(fan_out='yes'), "fan_out must be True or False, got 'yes'"),
        (dict(levels={8: 'left'}), "levels must be a dict .* got {8: 'left'}"),
        (dict(levels={8: 'up'}, fan_out=True), 'give it or levels, not both'),
        (dict(levels={64: 'down'}), 'levels has the stride 64, which the student has not'),
    ],
)
def test_mistakes__of_the_options(options, message):
    with pytest.raises(ConfigError, match=message):
        teacher_of(Patches(16), **options).probe()


def test_mistakes__no_common_stride_and_no_fan_out():
    model = dict(distilled(fcos(), None), teacher=dict(module=Patches(64, tells=True), **INPUT))
    with pytest.raises(ConfigError, match=r'the teacher \[64\]; if the teacher is a module, fan_o'):
        MODELS.build(model)
