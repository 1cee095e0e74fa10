"""The benchmark and its stopwatch."""

import json
import time

import pytest
import torch
from mmcv.ops import DeformConv2dPack
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from runs import REPOSITORY, call_tool, fcos, write_step_config
from torch.nn.modules.module import register_module_forward_hook

from rdimkd_det.benchmark.operations import count, count_operations
from rdimkd_det.benchmark.preparation import batch_for, prepare
from rdimkd_det.benchmark.steps import teacher_variants
from rdimkd_det.benchmark.subject import Subject
from rdimkd_det.distiller import monitoring
from rdimkd_det.stopwatch import describe_device, measure, peak_memory

CPU = torch.device('cpu')
FLAGSHIP = REPOSITORY / 'configs/rdimkd_fcos_r50_r18.py'


def spend(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_measure__median_and_quartiles_in_turn():
    turns = []

    def piece(name, seconds):
        turns.append(name)
        spend(seconds)

    costs = measure(
        {'a': lambda: piece('a', 0.01), 'b': lambda: piece('b', 0.03)}, rounds=3, device=CPU
    )
    assert turns[:10] == ['a', 'b'] * 5  # two rounds of warm-up, three timed
    for name, milliseconds in (('a', 10), ('b', 30)):
        assert costs[name].low <= costs[name].median <= costs[name].high
        assert costs[name].low >= 0.99 * milliseconds
    assert costs['a'].median < costs['b'].median


def test_peak_memory__literal():
    def piece():
        first = torch.empty(1000, 1000)  # 4 MB
        second = torch.empty(1000, 500)  # 2 MB more, the peak
        del first, second
        torch.empty(1000, 700)

    assert peak_memory(piece, CPU) == pytest.approx(6e6, rel=0.01)


def test_describe_device__versions():
    machine = describe_device(CPU)
    assert machine['torch'] == torch.__version__ and machine['threads'] >= 1
    assert machine['cuda'] == torch.version.cuda and machine['cudnn.allow_tf32'] is True
    assert {'cudnn', 'cudnn.benchmark', 'matmul.allow_tf32'} <= machine.keys()


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    return write_step_config(tmp_path_factory.mktemp('config'))


def test_tool__measures_everything(tmp_path, config, capsys):
    arguments = ['--shape', 64, 96, '--batch', 2, '--rounds', 2, '--json', tmp_path / 'b.json']
    call_tool('benchmark.py', config, *arguments)
    report = json.loads((tmp_path / 'b.json').read_text())
    steps = {name: cost['median'] for name, cost in report['steps'].items()}
    teachers = {name: median for name, median in steps.items() if name.startswith('teacher: ')}
    assert set(teachers) == {
        'teacher: as configured', 'teacher: fp32, unfused', 'teacher: fp32, fused, channels_last',
    }  # fmt: skip
    assert teachers[report['fastest_teacher']] == min(teachers.values())
    expected = steps['student step'] + min(teachers.values()) + steps['read both maps']
    assert report['floor'] == pytest.approx(expected)
    assert report['distilled_to_floor'] == pytest.approx(steps['distilled step'] / expected)
    assert report['steps']['student step']['memory'] > 10**6
    assert report['command'].endswith('b.json') and report['machine']['mmdet'] and report['date']
    assert 'distilled step' in capsys.readouterr().out


def test_monitored_step__is_that_of_the_hook(monkeypatch, config):
    looks, shares = [], monitoring.explained_shares

    def look(loss, *feats):
        looks.append(len(feats[0]))
        return shares(loss, *feats)

    monkeypatch.setattr(monitoring, 'explained_shares', look)
    subject = small_subject(config)
    subject.monitored_step()
    assert looks == [3]  # levels
    subject.distilled_step()
    assert looks == [3]


def test_teacher_variants__every_precision_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: True)
    variants = teacher_variants(torch.device('cuda'))
    fast = {v.precision for v in variants.values() if v.fuse and v.channels_last}
    assert fast == {'fp32', 'fp16', 'bf16'} and len(variants) == 4


def test_batch_for__masks_where_the_detector_has_a_mask_head(config):
    subject = small_subject(config)
    assert 'masks' not in subject.samples[0].gt_instances
    subject.model.mask_head = torch.nn.Identity()
    objects = batch_for(subject.model, 1, (40, 60))['data_samples'][0].gt_instances
    assert objects.masks.masks.shape == (4, 40, 60)


def test_batch_for__images_of_as_many_channels_as_the_detector_takes():
    init_default_scope('mmdet')
    model = fcos()
    model.backbone.in_channels = 1
    batch = batch_for(MODELS.build(model), 1, (40, 60))
    assert batch['inputs'][0].shape == (1, 40, 60)


# Operations


def small_subject(config):
    cfg = Config.fromfile(config)
    prepare(cfg)
    return Subject(cfg, 2, (64, 96), CPU)


def convolutions(run):
    """Count the operations of all convolutions that run, and of the first one."""
    counts = []

    def note(module, args, output):
        if isinstance(module, torch.nn.Conv2d):
            batch, _, height, width = output.shape
            taps = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            counts.append(2 * batch * height * width * module.out_channels * taps)

    handle = register_module_forward_hook(note)
    run()
    handle.remove()
    return sum(counts), counts[0]


def test_count_operations__formula_of_convolutions(config):
    subject = small_subject(config)
    found = count_operations(subject)
    teacher, _ = convolutions(subject.teacher_maps)
    assert found['teacher'] * 1e9 == pytest.approx(teacher, abs=1000)
    # Forward, and the gradients of weights and input; the image has no gradient.
    forward, first = convolutions(subject.plain_step)
    student = 3 * forward - first
    assert found['student_step'] * 1e9 == pytest.approx(student, abs=1000)
    assert found['teacher_to_student'] == pytest.approx(teacher / student, abs=1e-4)
    # 252 positions, 16 channels of the student, 24 of the teacher, d = 8: two projections and two
    # gradients, three products of coordinates. An adapter, 16 weights for each of 24 channels, is
    # folded into the basis, and its gradient unfolded, at each of three levels.
    positions, folding = 2 * (8 * 12 + 4 * 6 + 2 * 3), 2 * 16 * 24 * 8
    loss = 2 * positions * 8 * (3 * 16 + 24 + 3) + 3 * 2 * folding
    distilled = student + teacher + loss
    assert found['distilled_step'] * 1e9 == pytest.approx(distilled, abs=1000)


def test_count__deformable_convolution():
    convolution = DeformConv2dPack(4, 6, 3, padding=1)  # its offsets come from a convolution
    image = torch.randn(2, 4, 5, 7)
    own, offsets = (2 * 2 * 5 * 7 * 4 * 9 * channels for channels in (6, 18))
    with torch.no_grad():
        assert count(lambda: convolution(image)) == own + offsets
    image.requires_grad_()
    assert count(lambda: convolution(image).sum().backward()) == 3 * (own + offsets)


# Use


@pytest.mark.slow
def test_tool__documented_command_needs_no_network(tmp_path):
    arguments = ['--shape', 64, 96, '--random-weights', '--only', 'operations']
    call_tool('benchmark.py', FLAGSHIP, *arguments, '--json', tmp_path / 'b.json')
    report = json.loads((tmp_path / 'b.json').read_text())
    assert report['operations']['distilled_step'] > report['operations']['student_step'] > 1
    assert report['weights']['teacher'] == pytest.approx(109e6, rel=0.01)  # ResNet-50 and FPN


def test_tool__random_weights_need_no_checkpoint(config, capsys):
    options = ['--cfg-options', 'model.teacher.checkpoint=none.pth']
    arguments = ['--shape', 64, 64, '--only', 'operations']
    call_tool('benchmark.py', config, *arguments, '--random-weights', *options)
    capsys.readouterr()
    with pytest.raises(SystemExit, match='2'):
        call_tool('benchmark.py', config, *arguments, *options)
    error = capsys.readouterr().err
    assert error.startswith('benchmark.py: teacher: checkpoint none.pth does not exist.')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['none.py'], 'config none.py not found'),
        ([REPOSITORY / 'configs/digits/fcos_r18.py'], 'has no model with one teacher'),
        ([FLAGSHIP, '--batch', 0], 'must be 1 or more'),
        ([FLAGSHIP, '--json', 'none/b.json'], 'none/b.json cannot be written: No such file'),
        ([FLAGSHIP, '--json', '.'], '--json . is a directory'),
        ([FLAGSHIP, '--json', '/proc/b.json'], '/proc/b.json cannot be written'),
        ([FLAGSHIP, '--cfg-options', 'optim_wrapper.type.x=1'], '--cfg-options: '),
        ([FLAGSHIP, '--cfg-options', 'optim_wrapper.optimizer.type=SDG'], "unknown type 'SDG'"),
        ([FLAGSHIP, '--cfg-options', 'optim_wrapper=None'], 'no optim_wrapper with an optimizer'),
        ([FLAGSHIP, '--cfg-options', 'model.teacher.cache=c'], 'model.teacher.cache is set'),
        ([FLAGSHIP, '--only', 'losses'], 'python -m experiments.compare_losses'),
    ],
)
def test_tool__wrong_use(capsys, arguments, message):
    with pytest.raises(SystemExit, match='2'):
        call_tool('benchmark.py', *arguments)
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_tool__a_step_that_fails(config, capsys):
    """One position a channel is too few for BatchNorm."""
    with pytest.raises(SystemExit, match='2'):
        call_tool('benchmark.py', config, '--shape', 1, 1, '--random-weights', '--only', 'steps')
    error = capsys.readouterr().err
    assert 'cannot be run: ValueError: Expected more than 1 value' in error
    assert error.count('\n') == 1


def test_tool__nothing_to_measure(config, capsys):
    with pytest.raises(SystemExit, match='2'):
        call_tool('benchmark.py', config, '--cfg-options', 'model.losses.neck.loss_weight=0')
    error = capsys.readouterr().err
    assert 'each loss_weight in model.losses is 0' in error and error.count('\n') == 1
