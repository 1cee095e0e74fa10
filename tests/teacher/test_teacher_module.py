"""A teacher that is no MMDetection detector: any torch module, from outside of the package."""

import copy
import json
import pickle
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from cached_runs import make_cache
from detectors import random_batch
from mmdet.registry import MODELS
from mmengine.config import Config
from runs import assert_equal, call_tool, distilled, fcos, load, run_config, train, trained_losses
from safetensors.torch import save_file
from torch import nn

from rdimkd_det import ConfigError
from rdimkd_det.benchmark.preparation import prepare
from rdimkd_det.features import OUTPUT
from rdimkd_det.files.configs import UnreadableConfigError
from rdimkd_det.teacher import ModuleSource, Teacher
from rdimkd_det.teacher.acceleration import Acceleration
from rdimkd_det.teacher.build import build_teacher
from rdimkd_det.teacher.cache.origin import check_facts
from rdimkd_det.teacher.cache.store import TeacherCache

TOY = '''
import types
import torch
from torch import nn


class Pyramid(nn.Module):
    """A user's network, with maps of strides 8, 16 and 32."""

    def __init__(self, channels=24, gives=list):
        super().__init__()
        self.gives = gives
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.BatchNorm2d(8), nn.ReLU())
        widths = (8, channels, channels, channels)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()) for a, b in zip(widths, widths[1:])
        )

    def forward(self, images):
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return self.gives(maps[1:])


GIVES = {
    'list': list,
    'tuple': tuple,
    'dict': lambda maps: {f'p{number}': one for number, one in enumerate(maps)},
    'object': lambda maps: types.SimpleNamespace(feature_maps=tuple(maps)),
    'map': lambda maps: maps[1],
    'lists': lambda maps: {'last': [(one, one[:, 0] > 0) for one in maps], 'others': None},
    'tokens': lambda maps: [one.flatten(2) for one in maps],
}


def make(gives='list', **options):
    return Pyramid(gives=GIVES[gives], **options)


def number():
    return 3
'''
INPUT = dict(mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0])


@pytest.fixture(autouse=True)
def toy(tmp_path_factory, monkeypatch):
    """The user's file ``toy_teacher.py``, importable; return the module."""
    folder = tmp_path_factory.mktemp('toy')
    (folder / 'toy_teacher.py').write_text(TOY)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, 'toy_teacher', raising=False)
    import toy_teacher

    return toy_teacher


def entry(checkpoint=None, **options) -> dict:
    found = dict(module=dict(type='toy_teacher.make', **options), **INPUT)
    return found if checkpoint is None else {**found, 'checkpoint': str(checkpoint)}


def config_of(files: Path, name: str, teacher=None, **overrides):
    model = distilled(fcos(), teacher or entry())
    config = run_config(files / 'data', files / name, model, **overrides)
    config.custom_hooks[0].monitor_interval = 1
    return config


def source(**options) -> ModuleSource:
    return ModuleSource(**entry(**options))


# The module


@pytest.mark.parametrize('gives', ['list', 'tuple', 'dict', 'object', 'map', 'lists'])
def test_output__kinds(toy, gives):
    teacher = Teacher(source(gives=gives), [OUTPUT])
    levels = teacher.probe()[OUTPUT]
    assert [level.stride for level in levels] == ([16] if gives == 'map' else [8, 16, 32])
    images = torch.randn(2, 3, 64, 96)
    found, expected = teacher(images)[OUTPUT], source().load(None, ())(images)
    assert all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in zip(found, [expected[1]] if gives == 'map' else expected)
    )
    assert not found[0].requires_grad


def test_output__of_a_class_without_parameters():
    source = ModuleSource(dict(type='torch.nn.AvgPool2d', kernel_size=8), **INPUT)
    teacher, images = Teacher(source, [OUTPUT]), torch.randn(1, 3, 64, 96)
    [level] = teacher.probe()[OUTPUT]
    assert (level.stride, level.channels) == (8, 3)
    torch.testing.assert_close(
        teacher(images)[OUTPUT][0], torch.nn.functional.avg_pool2d(images, 8)
    )


def test_inner_tap__of_teacher_module():
    losses = {'neck': {'teacher_module': 'stages.1'}}
    student = MODELS.build(fcos())
    teacher, taps = build_teacher(entry(), losses, student.data_preprocessor)
    assert taps == {'neck': 'stages.1'} and losses == {'neck': {}}
    assert [level.stride for level in teacher.probe()['stages.1']] == [16]
    with pytest.raises(ConfigError, match=r"'stages.1' is tapped, and compile=True hides"):
        Teacher(source(), ['stages.1'], Acceleration(compile=True))


def test_inner_tap__from_the_command_line(tmp_path):
    plain, path = tmp_path / 'plain.py', tmp_path / 'distilled.py'
    run_config(tmp_path, tmp_path, fcos()).dump(plain)
    module = ('--teacher-module', 'toy_teacher.make', '--teacher-args', 'gives=tokens')
    statistics = [f'{name}={values}'.replace(' ', '') for name, values in INPUT.items()]
    options = ('--teacher-options', *statistics, '--teacher-tap', 'stages.1')
    call_tool('distill.py', plain, *module, *options, '--save-config', path)
    assert Config.fromfile(path).model.losses.neck.teacher_module == 'stages.1'


def test_compile__the_whole_module():
    images = torch.randn(1, 3, 64, 96)
    with mock.patch('torch.compile', lambda network, dynamic: torch.jit.trace(network, images)):
        found = Teacher(source(), [OUTPUT], Acceleration(compile=True))(images)[OUTPUT]
    assert torch.allclose(found[2], Teacher(source(), [OUTPUT])(images)[OUTPUT][2], atol=1e-5)


@pytest.mark.parametrize('bgr', [False, True])
def test_input__is_the_modules_own(toy, bgr):
    student = MODELS.build(fcos())
    teacher, _ = build_teacher({**entry(), 'bgr': bgr}, {'neck': {}}, student.data_preprocessor)
    batch = random_batch(size=(64, 96))
    images = torch.stack(batch['inputs']).float()
    images = images if bgr else images.flip(1)
    mean, std = (torch.tensor(INPUT[name])[:, None, None] for name in ('mean', 'std'))
    data = student.data_preprocessor(batch, True)
    found = teacher(data['inputs'], data['data_samples'])[OUTPUT]
    expected = source().load(None, ())((images - mean) / std)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, expected))


def test_built_module__is_copied_and_left_as_it_was(toy):
    module = toy.Pyramid()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    student = MODELS.build(
        dict(
            distilled(fcos(), None, projection=dict(type='RandomProjection', dim=8)),
            teacher=dict(module=module, precision='bf16', **INPUT),
        )
    )
    data = student.data_preprocessor(random_batch(num_classes=3), True)
    losses = student.train().loss(data['inputs'], data['data_samples'])
    assert 'loss_rdimkd_neck_s8' in losses
    assert module.training and all(p.requires_grad for p in module.parameters())
    assert_equal(module.state_dict(), before)
    assert not any('stages' in key for key in student.state_dict())
    again = pickle.loads(pickle.dumps(student.distill.teacher))
    assert not again.built and again.identity() == student.distill.teacher.identity()


def test_callable__makes_the_same_each_time_and_takes_no_random_numbers():
    state = torch.get_rng_state()
    with mock.patch('torch.cuda.manual_seed_all') as of_gpus:
        first, second = source().build(), source().build()
    assert torch.equal(torch.get_rng_state(), state) and not of_gpus.called
    assert_equal(first.state_dict(), second.state_dict())


@pytest.mark.parametrize('kind', ['pth', 'safetensors'])
def test_checkpoint__is_loaded_strictly(tmp_path, toy, kind):
    path, module = tmp_path / f'w.{kind}', toy.Pyramid().eval()
    write = save_file if kind == 'safetensors' else torch.save
    write(module.state_dict(), path)
    images = torch.randn(1, 3, 64, 96)
    options = dict(fuse=False, channels_last=False)
    for share in (False, True):
        acceleration = Acceleration(**options, share_weights=share)
        found = Teacher(source(checkpoint=path), [OUTPUT], acceleration)(images)[OUTPUT]
        assert torch.equal(found[1], module(images)[1])
    weights = module.state_dict()
    del weights['stages.1.0.bias']
    write(weights, path)
    with pytest.raises(ConfigError, match=r'does not match toy_teacher.make: .* 1 missing \(stag'):
        Teacher(source(checkpoint=path), [OUTPUT]).build()


# A training


def test_train__monitored_and_resumed_bit_for_bit(files, toy):
    whole = config_of(files, 'whole')
    with mock.patch.object(toy, 'make', wraps=toy.make) as make:
        train(whole)
    assert make.call_count == 1  # a large one takes long to make
    lines = trained_losses(whole.work_dir)
    assert len(lines) == 4 and all(line['loss_rdimkd_neck_s32'] > 0 for line in lines)
    scalars = next(Path(whole.work_dir).glob('*/vis_data/scalars.json')).read_text()
    assert 'explained_in_neck_s16' in json.loads(scalars.splitlines()[0])
    train(config_of(files, 'cut', max_epochs=1))
    train(config_of(files, 'cut', resume=True))
    one, other = (load(files / name / 'epoch_2.pth') for name in ('whole', 'cut'))
    assert_equal(one['state_dict'], other['state_dict'])
    assert_equal(one['distill'], other['distill'])
    with pytest.raises(ConfigError, match=r'another teacher or other losses .*Its teacher was'):
        train(config_of(files, 'cut', entry(channels=32), max_epochs=3, resume=True))
    with pytest.raises(ConfigError, match=r'Its gives in module of the teacher was None, here'):
        options = entry(gives='tuple')  # of equal weights
        train(config_of(files, 'cut', options, max_epochs=3, resume=True))


def test_tools__preflight_train_test_export(files, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '400')
    config, path = config_of(files, 'tools', max_epochs=1), files / 'tools.py'
    config.dump(path)
    with pytest.raises(SystemExit) as stopped:
        call_tool('preflight.py', path, '--samples', 4, '--eval-teacher')
    told = capsys.readouterr().out
    assert stopped.value.code == 0, told
    assert 'toy_teacher.make: Pyramid of ' in told and 'none: it is a module' in told
    assert 'its own weights; it looks untrained: every bias of its norms is exactly 0' in told
    assert 'the bridge changes the normalisation, pads with 0 to the largest image of' in told
    assert 'toy_teacher.make is a module, not a detector whose input and AP can be judged' in told
    assert 'neck_s16' in told and 'an iteration' in told
    call_tool('train.py', path)
    checkpoint = files / 'tools/epoch_1.pth'
    call_tool('analyze_projection.py', path, '--images', 4, '--out', files / 'spectrum.png')
    picture = files / 'maps.png'
    call_tool('visualize.py', path, checkpoint, files / 'data/images/0.png', '--out', picture)
    assert picture.exists()
    with pytest.raises(ConfigError, match=r'model.teacher is a module, and the benchmark'):
        prepare(config)
    # Neither the test nor the export needs the module.
    with mock.patch.dict(sys.modules, toy_teacher=None):
        call_tool('test.py', path, checkpoint)
        call_tool('export_student.py', checkpoint, '--out', files / 'student.pth', '--config', path)
    [exported] = files.glob('student-*.pth')
    meta = load(exported)['meta']['distillation']['teachers'][0]
    assert meta['module'] == {'type': 'toy_teacher.make'} and meta['mean'] == INPUT['mean']
    MODELS.build(fcos()).load_state_dict(load(exported)['state_dict'])


def test_torchscript__a_file_teaches(files, toy):
    module, path = toy.Pyramid().eval(), str(files / 'teacher.pt')
    torch.jit.trace(module, torch.zeros(1, 3, 64, 64)).save(path)
    script = dict(module=dict(type='torch.jit.load', f=path), **INPUT)
    images = torch.randn(2, 3, 64, 96)
    found = Teacher(ModuleSource(**script), [OUTPUT])(images)[OUTPUT]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, module(images)))
    torch.jit.script(nn.Conv2d(3, 24, 8, 8).half()).save(path)
    assert Teacher(ModuleSource(**script), [OUTPUT])(images)[OUTPUT][0].dtype == torch.float32
    fixed = nn.Sequential(nn.Conv2d(3, 24, 8, 8), nn.Flatten(2), nn.Unflatten(2, (32, 32)))
    torch.jit.script(fixed).save(path)
    with pytest.raises(ConfigError, match='of 64x96 pixels: RuntimeError: unflatten: Provided'):
        Teacher(ModuleSource(**script), [OUTPUT])(images)
    torch.jit.trace(module, torch.zeros(1, 3, 64, 64)).save(path)
    config = config_of(files, 'script', script, max_epochs=1)
    train(config)
    assert trained_losses(config.work_dir)[-1]['loss_rdimkd_neck_s8'] > 0


def test_several_teachers__a_detector_and_a_module(files):
    detector = {name: str(files / f'teacher/teacher.{kind}')
                for name, kind in (('config', 'py'), ('checkpoint', 'pth'))}  # fmt: skip
    teachers = [dict(detector, name='detector'), dict(entry(), name='module')]
    config = config_of(files, 'several', teachers, max_epochs=1)
    train(config)
    line = trained_losses(config.work_dir)[-1]
    assert line['loss_rdimkd_detector_neck_s8'] > 0 and line['loss_rdimkd_module_neck_s8'] > 0


def test_cache__of_a_module(files):
    config = config_of(files, 'cached', {**entry(), 'cache': str(files / 'cache')})
    make_cache(config)
    for teacher in (config.model.teacher, dict(cache=str(files / 'cache'))):
        config.model.teacher = teacher
        config.work_dir = str(files / f'cached{len(teacher)}')
        with mock.patch.object(ModuleSource, 'build', side_effect=AssertionError('built')):
            train(config)
        assert trained_losses(config.work_dir)[-1]['loss_rdimkd_neck_s8'] > 0
    config.model.teacher = {**entry(channels=16), 'cache': str(files / 'cache')}
    with pytest.raises(ConfigError, match=r'was made with other .* in module of the teacher: '):
        train(config)
    recorded = ModuleSource(entry()['module'], input_scale=2, bgr=True)  # its record gives the rest
    given = recorded._facts_without_building()['input of the teacher']
    assert given == dict(mean=None, std=None, bgr_to_rgb=False, input_scale=2)
    cache = TeacherCache(files / 'cache')
    check_facts(cache, {'input of the teacher': dict.fromkeys(('mean', 'std', 'bgr_to_rgb'))})
    with pytest.raises(ConfigError, match='other bgr_to_rgb in input of the teacher: True; th'):
        check_facts(cache, {'input of the teacher': given})


def test_inherit__needs_a_checkpoint(files):
    config = config_of(files, 'inherits')
    config.model.inherit = ['neck']
    with pytest.raises(ConfigError, match=r'this teacher, a module, has none; give teacher.check'):
        train(config)


# Mistakes


@pytest.mark.parametrize(
    'teacher, message',
    [
        (dict(module=dict(type='toy_teacher.make')), r'needs mean and std .* got mean=None, std='),
        (dict(entry(), std=None), r'toy_teacher.make needs mean and std .* std=None'),
        (dict(entry(), mean=[1, 2]), r'three numbers each .* got mean=\[1, 2\]'),
        (dict(entry(), std=[1, 0, 1]), r'three numbers each .* std=\[1, 0, 1\]'),
        (dict(entry(), bgr='yes'), "bgr must be True or False, got 'yes'"),
        (dict(entry(), config='x.py'), 'has config and module; give one of them'),
        (dict(entry(), men=[1, 1, 1]), "has no option 'men'; did you mean 'mean'"),
        (dict(config='x.py', checkpoint='y', mean=[1, 1, 1]), "has no option 'mean'"),
        (dict(module='toy', **INPUT), r'module must be a torch.nn.Module, or a dict .* got .toy'),
        (dict(module=dict(depth=3), **INPUT), r'or a dict whose type is the dotted path'),
        (dict(module=dict(type='toy_teacher.number'), **INPUT), 'returned a int; it must return'),
        (dict(module=dict(type='toy_teacher.mak'), **INPUT), 'toy_teacher.mak cannot be made: '),
        (dict(module=dict(type='no_such.make'), **INPUT), "named 'no_such'; is it on PYTHONPATH"),
        (entry(depth=3), "toy_teacher.make cannot be made: TypeError: .*'depth'"),
        (entry(fan_out=True), "'fan_out'; fan_out is no argument of it but an option of the teac"),
        (entry(gives='tokens'), r'Pyramid returns no feature maps .*, but \(1, 24, 1024\), '),
        (dict(entry(), share_weights=True, fuse=False, channels_last=False), 'and toy_teacher'),
    ],
)  # fmt: skip
def test_mistakes__in_one_line(teacher, message):
    preprocessor = MODELS.build(fcos()).data_preprocessor
    with pytest.raises(ConfigError, match=message) as caught:
        build_teacher(teacher, {'neck': {}}, preprocessor)[0].build()
    assert '\n' not in str(caught.value)


def test_module_that_is_not_installed__stops_training_only(tmp_path):
    teacher = dict(module=dict(type='no_such.make'), **INPUT)
    student = MODELS.build(distilled(fcos(), teacher))
    data = student.data_preprocessor(random_batch(num_classes=3), False)
    assert student.eval().predict(data['inputs'], data['data_samples'])
    with pytest.raises(UnreadableConfigError, match=r'no_such.make cannot be made'):
        student.train().loss(data['inputs'], data['data_samples'])


class OfStrideEight(nn.Module):
    """One map of stride 8, with something unusual done to input or output."""

    def __init__(self, before=lambda images: images, after=lambda maps: maps, convolution=None):
        super().__init__()
        self.stem = nn.Sequential(convolution or nn.Conv2d(3, 24, 8, 8), nn.BatchNorm2d(24))
        self.before, self.after = before, after

    def forward(self, images):
        return self.after(self.stem(self.before(images)))


def losses_with(module):
    teacher = dict(module=module, **INPUT)
    model = MODELS.build(
        distilled(fcos(), teacher, projection=dict(type='RandomProjection', dim=4))
    )
    data = model.train().data_preprocessor(random_batch(num_classes=3), training=True)
    return model(**data, mode='loss')


def test_module__that_changes_its_input_is_refused():
    """Where the bridge has nothing to do, that is the student's batch."""
    with pytest.raises(ConfigError, match='OfStrideEight changes its input in place'):
        losses_with(OfStrideEight(before=lambda images: images.div_(255)))


def test_module__whose_channels_are_last():
    module = OfStrideEight()
    last = copy.deepcopy(module)
    last.after = lambda maps: maps.permute(0, 2, 3, 1)
    images = torch.randn(2, 3, 96, 128)
    one, other = (Teacher(ModuleSource(it, **INPUT), [OUTPUT])(images) for it in (module, last))
    assert torch.equal(one[OUTPUT][0], other[OUTPUT][0])


def test_module__whose_maps_are_no_squares_is_named():
    with pytest.raises(ConfigError, match=r'\(1, 24, 16, 32\), which is not \(N, C, H, W\)'):
        losses_with(OfStrideEight(after=lambda maps: maps[:, :, ::2]))


def test_module__whose_patches_overlap_or_whose_layers_do_not_pad():
    module = nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.Conv2d(8, 8, 3, 4, 1))
    module.patch_size = 7  # as timm's PVTv2 tells; of 259 pixels it makes 17 positions
    [level] = Teacher(ModuleSource(module, **INPUT), [OUTPUT]).probe()[OUTPUT]
    assert level.stride == 16
    unpadded = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 7, 4), nn.Conv2d(8, 8, 3))
    with pytest.raises(ConfigError, match=r'makes 29x29 .* of 8 pixels .* its layers do not pad'):
        Teacher(ModuleSource(unpadded, **INPUT), [OUTPUT]).probe()


def test_module__that_takes_more_than_images_or_one_size_only():
    class Masked(OfStrideEight):
        def forward(self, images, mask):
            return super().forward(images)

    with pytest.raises(ConfigError, match=r"TypeError: .* positional argument: 'mask'"):
        losses_with(Masked())

    def of_256(images):
        assert images.shape[2:] == (256, 256), 'of 256 pixels only'
        return images

    with pytest.raises(ConfigError, match='does not take images of 96x128 pixels: AssertionError'):
        losses_with(OfStrideEight(before=of_256))
    with pytest.raises(ConfigError, match='has parameters whose shape is known after the first'):
        losses_with(OfStrideEight(convolution=nn.LazyConv2d(24, 8, 8)))


def test_module__that_resizes_images_itself_or_draws_random_numbers():
    """Its maps lie on the image in another place, or tell something else each time."""

    def to(size):
        return lambda images: nn.functional.interpolate(images, (size, size))

    with pytest.raises(ConfigError, match='makes maps of one size of images of 256 and of 512'):
        losses_with(OfStrideEight(before=to(800)))
    with pytest.raises(ConfigError, match='32x32 positions of an image of 96x128 pixels'):
        losses_with(OfStrideEight(before=to(256)))
    with pytest.raises(ConfigError, match='OfStrideEight makes other maps of the same image each'):
        losses_with(OfStrideEight(after=nn.functional.dropout))


def test_module__that_keeps_traces_of_an_image_it_fails_at():
    """As transformers' Swin keeps the window of one that is too small for its own."""

    class Windows(OfStrideEight):
        window = wanted = 12

        def forward(self, images):
            maps = super().forward(images)
            self.window = min(self.window, *maps.shape[2:])
            if self.window < self.wanted:
                raise RuntimeError('The size of tensor a must match the size of tensor b')
            return maps

    assert losses_with(Windows())['loss_rdimkd_neck_s8'] > 0


def test_module__whose_batch_norm_cannot_be_folded():
    """Folding assigns the weight, and one that is parametrized raises a KeyError."""
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 24, 8, 8))
    assert losses_with(OfStrideEight(convolution=weight_norm))['loss_rdimkd_neck_s8'] > 0


def test_facts__input_arguments_and_entries_of_the_state_that_are_no_tensors():
    class WithExtraState(OfStrideEight):
        def get_extra_state(self):
            return {'version': 1}

    module = WithExtraState()
    one = ModuleSource(module, **INPUT)
    assert one.facts() == ModuleSource(module, **INPUT).facts()
    assert one.facts() != ModuleSource(module, **INPUT, bgr=True).facts()
