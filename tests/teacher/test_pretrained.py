"""Teachers of transformers: tiny random DINOv2, DINOv3 and a DINOv3 ConvNeXt."""

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from cached_runs import make_cache
from foundations import BACKBONE, MODEL, RECORD, pretrained, write_directory
from mmdet.registry import MODELS
from runs import (
    assert_equal,
    call_tool,
    distilled,
    fcos,
    load,
    run_config,
    run_tool,
    train,
    trained_losses,
)
from torch import nn

from rdimkd_det import ConfigError
from rdimkd_det.features import OUTPUT
from rdimkd_det.files.configs import UnreadableConfigError
from rdimkd_det.teacher import ModuleSource
from rdimkd_det.teacher.build import build_teacher
from rdimkd_det.teacher.module_source import directory_of
from rdimkd_det.teacher.pretrained import NAME

transformers = pytest.importorskip('transformers', reason='transformers is not installed')
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.fixture(scope='module')
def directories(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pretrained')
    for kind in ('dinov2', 'dinov3', 'convnext'):
        write_directory(folder, kind)
    return folder


def teacher_of(entry, strides=(8, 16, 32)):
    preprocessor = MODELS.build(fcos()).data_preprocessor
    return build_teacher(entry, {'neck': {}}, preprocessor, strides)[0]


def config_of(files, name, teacher, **overrides):
    return run_config(files / 'data', files / name, distilled(fcos(), teacher), **overrides)


# What they give


@pytest.mark.parametrize(
    'kind, make, strides',
    [
        ('dinov2', BACKBONE, [16]),
        ('dinov2', MODEL, [16]),
        ('dinov3', BACKBONE, [16]),
        ('dinov3', MODEL, [16]),
        ('convnext', BACKBONE, [8, 16, 32]),
    ],
)
def test_maps__are_the_modules_own(directories, kind, make, strides):
    """A batch of 90x150 pixels, which neither 14, 16 nor 32 divides."""
    teacher = teacher_of(pretrained(directories / kind, make))
    assert [level.stride for level in teacher.probe()[OUTPUT]] == strides
    images = torch.randn(2, 3, 90, 150)
    found = teacher(images)[OUTPUT]
    step = max(strides)
    height, width = -(-90 // step) * step, -(-150 // step) * step
    seen = nn.functional.pad(images, (0, width - 150, 0, height - 90))
    if kind == 'dinov2':
        size = height * 14 // 16, width * 14 // 16
        seen = nn.functional.interpolate(seen, size, mode='bilinear', antialias=True)
    with mock.patch('huggingface_hub.HfApi.repo_exists', return_value=True):
        module = transformers.AutoBackbone.from_pretrained(directories / kind).eval()
    with torch.no_grad():
        expected = module(seen).feature_maps
    for maps, own, stride in zip(found, expected, strides):
        assert maps.shape[2:] == (height // stride, width // stride)
        torch.testing.assert_close(maps, own, atol=1e-4, rtol=1e-4)


def test_input__is_read_from_the_record(directories, tmp_path):
    source = ModuleSource(**pretrained(directories / 'dinov3'))
    assert source.input['mean'] == pytest.approx(MEAN) and source.input['bgr_to_rgb']
    assert source.input_origin == str(directories / 'dinov3/preprocessor_config.json')
    other = tmp_path / 'other'
    shutil.copytree(directories / 'dinov3', other)
    record = dict(RECORD, do_normalize=False, do_flip_channel_order=True)
    (other / 'preprocessor_config.json').write_text(json.dumps(record))
    found = ModuleSource(**pretrained(other)).input
    assert found == dict(mean=[0, 0, 0], std=pytest.approx([255] * 3), bgr_to_rgb=False)
    given = ModuleSource(**pretrained(other, mean=[1, 2, 3], std=[4, 5, 6])).input
    assert given == dict(mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True)
    (other / 'preprocessor_config.json').write_text('{"size": 3}')
    with pytest.raises(ConfigError, match=r"does not tell image_mean .*'image_mean'.*; give mean"):
        teacher_of(pretrained(other))
    (other / 'preprocessor_config.json').unlink()
    with pytest.raises(ConfigError, match=r'needs mean and std .* recorded them .* got mean=None'):
        teacher_of(pretrained(other))


def test_facts__do_not_tell_where_a_directory_is(directories, tmp_path):
    shutil.copytree(directories / 'dinov3', tmp_path / 'moved/dinov3')
    one, other = (
        ModuleSource(**pretrained(folder / 'dinov3')).facts()
        for folder in (directories, tmp_path / 'moved')
    )
    assert one == other and one['module of the teacher'][NAME] == 'dinov3'
    assert one != ModuleSource(**pretrained(directories / 'dinov3', fan_out=True)).facts()


def test_directory__in_the_home_folder(directories, monkeypatch):
    monkeypatch.setenv('HOME', str(directories))
    source = ModuleSource(**pretrained('~/dinov3'))
    assert directory_of(source.module) == directories / 'dinov3'
    assert source.facts() == ModuleSource(**pretrained(directories / 'dinov3')).facts()


def test_precision__bf16(directories):
    images = torch.randn(1, 3, 64, 96)
    for kind in ('dinov2', 'dinov3'):
        entry = pretrained(directories / kind, fan_out=True)
        found = teacher_of(dict(entry, precision='bf16'))(images)[OUTPUT]
        expected = teacher_of(entry)(images)[OUTPUT]
        for maps, whole in zip(found, expected):
            assert not torch.equal(maps.float(), whole)
            torch.testing.assert_close(maps.float(), whole, atol=0.1, rtol=0.1)


# Mistakes


def test_weights__that_are_missing_are_no_random_ones(directories, tmp_path, caplog):
    from safetensors.torch import load_file, save_file

    shutil.copytree(directories / 'dinov3', tmp_path / 'd')
    weights = load_file(tmp_path / 'd/model.safetensors')
    del weights['layer.1.mlp.up_proj.weight']
    save_file(weights, tmp_path / 'd/model.safetensors', {'format': 'pt'})
    with pytest.raises(
        ConfigError, match=r'lacks 1 of the \d+ tensors of DINOv3ViTBackbone \(.*up_'
    ):
        teacher_of(pretrained(tmp_path / 'd'))
    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    vit = transformers.ViTModel(transformers.ViTConfig(**small), add_pooling_layer=False)
    vit.save_pretrained(tmp_path / 'vit')  # as DINO's ViT is published
    entry = pretrained(tmp_path / 'vit', MODEL, mean=MEAN, std=STD)
    with pytest.raises(ConfigError, match=r'pooler.* very model, and add_pooling_layer=False\.$'):
        teacher_of(entry)
    entry['module']['add_pooling_layer'] = False
    assert [level.stride for level in teacher_of(entry).probe()[OUTPUT]] == [16]


def write_pickles(folder, directories):
    shutil.copytree(directories / 'dinov2', folder / 'pickles')
    weights = folder / 'pickles/model.safetensors'
    weights.unlink()
    torch.save({}, weights.with_name('pytorch_model.bin'))
    return folder / 'pickles'


def test_mistakes__in_one_line(directories, tmp_path):
    dinov2 = pretrained(directories / 'dinov2')['module']
    (tmp_path / 'empty').mkdir()
    cases = [
        (pretrained(tmp_path / 'none'), 'the directory .*none does not exist'),
        (pretrained('./none'), 'the directory ./none does not exist'),
        (pretrained(tmp_path / 'empty'), 'cannot be made: ValueError: Unrecognized model in'),
        (pretrained(write_pickles(tmp_path, directories)), r'in pickles \(pytorch_model.bin\), wh'),
        (dict(module={**dinov2, 'out_indices': [9]}), 'out_indices must be valid indices'),
        (dict(module={**dinov2, 'colour': 3}), "unexpected keyword argument 'colour'"),
        (dict(module=dict(type=BACKBONE)), "missing 1 required positional argument: 'pretrained_m"),
        (dict(module=dict(dinov2, type='transformers.AutoBackbone.from_')), 'cannot be made: Attr'),
        (dict(module=dict(dinov2, type='transformers.AutoConfig.from_pretrained')), 'returned a D'),
    ]
    for teacher, message in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            teacher_of(teacher)
        assert '\n' not in str(caught.value)


def test_name_on_the_hub__without_a_network():
    with (
        mock.patch('huggingface_hub.HfApi.repo_exists', side_effect=ConnectionError('no network')),
        mock.patch.dict(os.environ, HF_HUB_OFFLINE='1'),
        pytest.raises(UnreadableConfigError, match=r"^teacher: 'a/b' is no directory, the hub can"),
    ):
        teacher_of(pretrained('a/b'))


# A training


def test_distill__from_the_command_line_to_an_export(files, directories, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '300')
    student, config = files / 'student.py', files / 'distilled.py'
    run_config(files / 'data', files / 'cli', fcos(), max_epochs=1).dump(student)
    name = f'pretrained_model_name_or_path={directories / "dinov2"}'
    given = ('--teacher-module', BACKBONE, '--teacher-args', name)
    options = ('--teacher-options', 'levels.8=up', 'levels.16=same', 'levels.32=down')
    call_tool('distill.py', student, *given, *options, '--save-config', config)
    with pytest.raises(SystemExit, match='0'):
        call_tool('preflight.py', config, '--samples', 8)
    told = capsys.readouterr().out
    assert 'Dinov2Backbone of ' in told and 'LICENSE.md' in told
    assert f'(from {directories / "dinov2/preprocessor_config.json"})' in told
    assert 'multiples of 16, resizes by 0.875' in told
    assert '8 up from 16, 16 as it is, 32 down from 16' in told
    assert 'Directions that hold 95% of the variance, 8 images' in told
    assert 'forward pass of the teacher' in told
    call_tool('train.py', config)
    line = trained_losses(files / 'cli')[-1]
    assert all(line[f'loss_rdimkd_neck_s{stride}'] > 0 for stride in (8, 16, 32))
    checkpoint = files / 'cli/epoch_1.pth'
    call_tool('analyze_projection.py', config, '--images', 4, '--out', files / 'spectrum.png')
    picture = files / 'maps.png'
    call_tool('visualize.py', config, checkpoint, files / 'data/images/0.png', '--out', picture)
    assert picture.exists()
    call_tool('export_student.py', checkpoint, '--out', files / 'student.pth', '--config', config)
    [exported] = files.glob('student-*.pth')
    [teacher] = load(exported)['meta']['distillation']['teachers']
    assert teacher['module'] == {'type': BACKBONE, 'pretrained_model_name_or_path': 'dinov2'}
    assert teacher['licence'] == 'LICENSE.md:\nlicence of dinov2'


def test_several__a_detector_and_a_module_of_two_resumed(files, directories):
    """The detector is read from a file, the module from a cache; bit for bit after a pause."""
    detector = {name: str(files / f'teacher/teacher.{kind}')
                for name, kind in (('config', 'py'), ('checkpoint', 'pth'))}  # fmt: skip
    teachers = [
        dict(detector, name='detector'),
        dict(pretrained(directories / 'dinov3', fan_out=True), name='dino'),
    ]
    whole = config_of(files, 'whole', teachers)
    train(whole)
    line = trained_losses(whole.work_dir)[-1]
    assert line['loss_rdimkd_detector_neck_s8'] > 0 and line['loss_rdimkd_dino_neck_s32'] > 0
    train(config_of(files, 'cut', teachers, max_epochs=1))
    train(config_of(files, 'cut', teachers, resume=True))
    one, other = (load(files / name / 'epoch_2.pth') for name in ('whole', 'cut'))
    assert_equal(one['state_dict'], other['state_dict'])
    changed = [teachers[0], dict(pretrained(directories / 'dinov3', levels={8: 'up'}), name='dino')]
    with pytest.raises(ConfigError, match='another teacher or other losses'):
        train(config_of(files, 'cut', changed, max_epochs=3, resume=True))


def test_cache__of_resized_levels(files, directories):
    teacher = pretrained(directories / 'dinov2', fan_out=True, cache=str(files / 'cache'))
    config = config_of(files, 'cached', teacher, max_epochs=1)
    make_cache(config)
    train(config)
    live = {key: value for key, value in teacher.items() if key != 'cache'}
    train(config_of(files, 'live', live, max_epochs=1))
    cached, expected = (trained_losses(files / name)[0] for name in ('cached', 'live'))
    for stride in (8, 16, 32):
        name = f'loss_rdimkd_neck_s{stride}'
        assert cached[name] == pytest.approx(expected[name], rel=0.01)
    config.model.teacher.fan_out = False
    with pytest.raises(ConfigError, match='was made with other levels of the teacher: all; this c'):
        train(config)


@pytest.mark.slow
def test_two_processes__train_alike(files, directories):
    config = config_of(files, 'two', pretrained(directories / 'dinov2', fan_out=True), max_epochs=1)
    config.train_dataloader.batch_size = 2
    config.dump(files / 'two.py')
    done = run_tool('train.py', files / 'two.py', '--launcher', 'pytorch', processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert trained_losses(files / 'two')[-1]['loss_rdimkd_neck_s8'] > 0
    assert Path(files / 'two/epoch_1.pth').exists()
