"""Distilled trainings from any two configs, with no config to write."""

import shutil
import subprocess
from runpy import run_path
from unittest import mock

import pytest
import torch
from detectors import random_batch
from mmdet.registry import MODELS
from mmengine.config import Config
from runs import (
    REPOSITORY,
    call_tool,
    distilled,
    fcos,
    load,
    run_config,
    write_data,
    write_teacher,
)

from rdimkd_det import ConfigError, RdimKDDistiller, distill_config, fit_projections

R18 = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
R50 = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
RTMDET_S = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'
RTMDET_L = 'mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py'
NO_NEK = "tap 'nek': the teacher has no such module; it has 'backbone', 'neck'."


def test_distill_config__student_stays_as_it_is():
    cfg = distill_config(R18, R50, 'r50.pth', loss_weight=2.0, hook=dict(calibration_images=64))
    plain = Config.fromfile(cfg.filename)
    assert cfg.model.student == plain.model
    assert cfg.optim_wrapper == plain.optim_wrapper
    assert cfg.model.teacher == dict(config=R50, checkpoint='r50.pth')
    assert cfg.model.losses.to_dict() == {
        'neck': dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight=2.0)
    }
    assert cfg.custom_hooks == [dict(type='DistillHook', calibration_images=64)]
    assert cfg.custom_imports.imports == ['rdimkd_det']


def test_distill_config__hooks_of_the_student_stay():
    cfg = distill_config(RTMDET_S, RTMDET_L, 'l.pth', projection='random', dim=16, tap=['neck'])
    kinds = [hook.type for hook in cfg.custom_hooks]
    assert kinds == ['EMAHook', 'PipelineSwitchHook', 'DistillHook']
    assert cfg.model.losses.neck.projection == dict(type='RandomProjection', dim=16)


def test_distill_config__teacher_is_a_tracker():
    tracker = Config(dict(model=dict(type='QDTrack', detector=fcos())))
    with pytest.raises(ConfigError, match='whose model is the detector in its QDTrack'):
        distill_config(R18, tracker, 'none.pth')


def test_distill_config__imports_what_a_config_of_the_teacher_imports():
    """Only its model goes into the result; a file that is named imports by itself."""
    student, teacher = (
        Config(dict(model=fcos(), custom_imports=dict(imports=names)))
        for names in (['rdimkd_det', 'of_student'], 'of_teacher')
    )
    cfg = distill_config(student, teacher, 'none.pth', projection='random')
    assert cfg.custom_imports.imports == ['rdimkd_det', 'of_student', 'of_teacher']


def test_distill_config__given_configs_are_not_changed():
    student, teacher = Config(dict(model=fcos())), Config(dict(model=fcos(fpn_channels=24)))
    cfg = distill_config(student, teacher, 'none.pth', tap=('backbone', 'neck'))
    assert student.model.type == 'FCOS' and 'custom_hooks' not in student
    model = MODELS.build(cfg.model)
    assert isinstance(model, RdimKDDistiller) and model.distill.taps == ['backbone', 'neck']
    assert model.distill.losses.neck.projections[0].dim == 4  # a quarter of the student's 16
    assert model.distill.losses.neck.auto


def test_distill_config__projection_given_as_a_config():
    student, teacher = Config(dict(model=fcos())), Config(dict(model=fcos(fpn_channels=24)))
    given = dict(type='AutoencoderProjection', dim=5, max_iters=9)
    cfg = distill_config(student, teacher, 'none.pth', projection=given)
    assert cfg.model.losses.neck.projection == given
    cfg = distill_config(student, teacher, 'none.pth', projection=dict(type='PCAProjection'), dim=3)
    assert cfg.model.losses.neck.projection == dict(type='PCAProjection', dim=3)


def test_distill_config__default_dim_follows_from_both_models():
    student, teacher = Config(dict(model=fcos())), Config(dict(model=fcos(fpn_channels=24)))
    for pair, dim in (((student, teacher), 4), ((teacher, student), 4), ((teacher, teacher), 6)):
        model = MODELS.build(distill_config(*pair, 'none.pth').model)
        assert model.distill.losses.neck.projections[0].dim == dim


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        (('none.py', R50, 'x.pth'), {}, 'student: config none.py cannot be read'),
        ((R18, 'none.py', 'x.pth'), {}, 'teacher: config none.py cannot be read'),
        ((R18, Config(), 'x.pth'), {}, 'teacher: config .given as a dict. holds no detector'),
        ((R18, R50, 'x.pth'), dict(projection='svd'), "projection must be one of .* got 'svd'"),
        ((R18, R50, 'x.pth'), dict(tap='nek'), f'^{NO_NEK}$'),
    ],
)
def test_distill_config__mistakes(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        distill_config(*arguments, **options)


def without_scope(node):
    """Return a config entry as plain data, without the scope that `mmdet::` bases leave in it."""
    if isinstance(node, dict):
        return {key: without_scope(value) for key, value in node.items() if key != '_scope_'}
    return [without_scope(each) for each in node] if isinstance(node, (list, tuple)) else node


@pytest.mark.parametrize(('student', 'teacher'), [(R18, R50), (RTMDET_S, RTMDET_L)])
def test_save_config__gives_the_same_training(student, teacher, tmp_path, capsys):
    path = tmp_path / 'configs/mine.py'
    call_tool('distill.py', student, teacher, 't.pth', '--dim', 32, '--fade', '--save-config', path)
    assert f'wrote {path}' in capsys.readouterr().out
    written = Config.fromfile(path)
    expected = distill_config(student, teacher, 't.pth', dim=32, hook=dict(schedule='fade'))
    expected.model.losses.neck.loss_weight = 'auto'
    for key in ('model', 'custom_hooks', 'custom_imports', 'optim_wrapper', 'train_dataloader'):
        assert without_scope(written[key]) == without_scope(expected[key]), key
    assert len(path.read_text().splitlines()) < 40


def test_save_config__overwrites_when_told_and_never_what_it_reads(tmp_path, capsys):
    teacher = write_teacher(tmp_path)
    student, other = tmp_path / 'student.py', tmp_path / 'other one.py'
    Config(dict(model=fcos())).dump(student)
    other.write_text('kept = 1')
    kept = {path: path.read_bytes() for path in (student, tmp_path / 'teacher.py', other)}

    def save(path, *options):
        arguments = (student, teacher['config'], teacher['checkpoint'], '--dim', 8)
        call_tool('distill.py', *arguments, '--save-config', path, *options)

    capsys.readouterr()  # what making the teacher said
    (tmp_path / 'link.py').symlink_to(student)
    for path, options, told in (
        (student, ['--force'], "is the student's config, which the new one would stand on; give"),
        (tmp_path / 'link.py', ['--force'], "is the student's config, which"),
        (teacher['config'], ['--force'], "is the teacher's config, which"),
        (other, [], 'already exists; give another name, or --force to overwrite it.\n'),
    ):
        with pytest.raises(SystemExit, match='2'):
            save(path, *options)
        error = capsys.readouterr().err
        assert error.startswith(f'distill.py: --save-config {path} {told}')
        assert error.count('\n') == 1
        assert {path: path.read_bytes() for path in kept} == kept
    save(other, '--force')
    assert capsys.readouterr().out == (
        f"wrote {other}; train with: python tools/train.py '{other}'\n"
    )
    assert Config.fromfile(other).model.type == 'RdimKDDistiller'


def test_save_config__options_of_a_training_are_not_forgotten(tmp_path, capsys):
    path = tmp_path / 'mine.py'
    options = ('--amp', '--cfg-options', 'train_cfg.max_epochs=7')
    with pytest.raises(SystemExit, match='2'):
        call_tool('distill.py', R18, R50, 't.pth', '--dim', 32, '--save-config', path, *options)
    assert capsys.readouterr().err == (
        'distill.py: --save-config writes a config and trains nothing; give --cfg-options, --amp '
        'to tools/train.py with it.\n'
    )
    assert not path.exists()


def test_distill__trains_beside_the_plain_student(tmp_path, monkeypatch):
    data = write_data(tmp_path / 'data')
    teacher = write_teacher(tmp_path)
    student = tmp_path / 'student.py'
    cfg = run_config(data, tmp_path / 'run', fcos(), max_epochs=1)
    cfg.pop('work_dir')
    cfg.dump(student)
    monkeypatch.chdir(tmp_path)
    options = ('--projection', 'autoencoder', '--dim', 4, '--loss-weight', 'auto')
    call_tool('distill.py', student, teacher['config'], teacher['checkpoint'], *options)
    checkpoint = load(tmp_path / 'work_dirs/student_distilled/epoch_1.pth')
    assert checkpoint['distill']['losses.neck.projections.0.basis'].shape == (24, 4)
    MODELS.build(fcos()).load_state_dict(checkpoint['state_dict'], strict=True)


def test_analyze_projection__table_and_picture(tmp_path, capsys):
    data, teacher = write_data(tmp_path / 'data'), write_teacher(tmp_path)
    config = tmp_path / 'distilled.py'
    run_config(data, tmp_path / 'run', distilled(fcos(), teacher)).dump(config)
    picture = tmp_path / 'spectrum.png'
    call_tool('analyze_projection.py', config, '--images', 8, '--out', picture)
    printed = capsys.readouterr().out
    assert all(f'neck_s{stride}' in printed for stride in (8, 16, 32))
    assert picture.read_bytes().startswith(b'\x89PNG')

    def half(figure, file, **options) -> None:
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    with (
        mock.patch('matplotlib.figure.Figure.savefig', half),
        pytest.raises(SystemExit, match='2'),
    ):
        call_tool('analyze_projection.py', config, '--images', 8, '--out', picture)
    full = f'analyze_projection.py: {picture}: No space left on device.\n'
    assert capsys.readouterr().err.endswith(full)
    assert picture.read_bytes().startswith(b'\x89PNG')  # the old one, and nothing beside it
    assert not list(tmp_path.glob('.*'))

    # The model goes where mmengine says, and there is no such place.
    with (
        mock.patch('mmengine.device.get_device', return_value='nowhere'),
        pytest.raises(SystemExit, match='2'),
    ):
        call_tool('analyze_projection.py', config, '--images', 8, '--out', picture)
    assert capsys.readouterr().err.endswith(': nowhere\n')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--images', 0], '--images must be 1 or more, got 0.'),
        (['--out', 'spectrum.txt'], '--out must be a picture (.'),
        (['--out', 'none/x.png'], '--out none/x.png cannot be written: No such file'),
    ],
)
def test_analyze_projection__mistakes_come_before_the_measurement(capsys, arguments, message):
    with pytest.raises(SystemExit, match='2'):
        call_tool('analyze_projection.py', 'unread.py', *arguments)
    error = capsys.readouterr().err
    assert error.startswith(f'analyze_projection.py: {message}') and error.count('\n') == 1


def test_principal_angles__of_known_subspaces():
    angles = run_path(REPOSITORY / 'tools/principal_angles.py')['principal_angles']
    draw = torch.Generator().manual_seed(0)
    student, other = torch.randn(2, 5000, 4, generator=draw, dtype=torch.float64)
    mixed = student @ torch.randn(4, 6, generator=draw, dtype=torch.float64)
    for teacher, expected in ((mixed, 0), (torch.cat([other, other[:, :2]], 1), 90)):
        covariance = torch.cat([student, teacher], 1).t().cov()
        assert angles(covariance, (4, 6), 4).tolist() == pytest.approx([expected] * 4, abs=3)
    # Two of the teacher's three components are the student's.
    teacher = torch.stack([student[:, 0], student[:, 1], other[:, 0]], 1)
    covariance = torch.cat([student[:, :3], teacher], 1).t().cov()
    assert angles(covariance, (3, 3), 3).tolist() == pytest.approx([0, 0, 90], abs=3)
    assert len(angles(covariance, (3, 3))) == 1


def test_principal_angles__of_a_training(tmp_path, capsys):
    data, teacher = write_data(tmp_path / 'data'), write_teacher(tmp_path)
    config = tmp_path / 'distilled.py'
    cfg = run_config(data, tmp_path / 'run', distilled(fcos(), teacher))
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2000)  # stays in epoch 0
    cfg.dump(config)
    plain, student = tmp_path / 'run/plain.pth', tmp_path / 'run/student.pth'
    plain.parent.mkdir()
    weights = MODELS.build(fcos()).state_dict()
    torch.save(weights, plain)
    torch.save(dict(meta=dict(epoch=0, iter=2000), state_dict=weights), student)
    picture = tmp_path / 'angles.png'
    options = ('--plain', plain, '--images', 4, '--out', picture)
    call_tool('principal_angles.py', config, student, *options)
    printed = capsys.readouterr().out
    assert 'iteration' in printed and '2000' in printed
    assert 'distilled' in printed and 'plain' in printed and 'neck_s32' in printed
    assert picture.read_bytes().startswith(b'\x89PNG')
    with pytest.raises(SystemExit, match='2'):
        call_tool('principal_angles.py', config, teacher['checkpoint'], '--out', picture)
    assert 'student: ' in capsys.readouterr().err


def test_library__without_a_runner(tmp_path):
    detector = MODELS.build(fcos())
    loss = dict(type='RdimKDLoss', projection=dict(type='PCAProjection', dim=8))
    model = RdimKDDistiller(
        student=detector, teacher=write_teacher(tmp_path), losses=dict(neck=loss)
    )
    batches = [random_batch(num_classes=3, seed=seed) for seed in range(3)]
    fit_projections(model, batches)
    losses = model(**model.data_preprocessor(batches[0], training=True), mode='loss')
    assert model is detector
    assert all(0 < losses[f'loss_rdimkd_neck_s{stride}'] < 4 for stride in (8, 16, 32))


@pytest.mark.skipif(shutil.which('bash') is None, reason='needs bash')
@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_scripts__usage(script):
    done = subprocess.run(
        ['bash', str(REPOSITORY / 'tools' / f'{script}.sh')], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith(f'usage: {script}.sh')


@pytest.mark.skipif(shutil.which('bash') is None, reason='needs bash')
@pytest.mark.parametrize('given', ['PYTHON', 'VIRTUAL_ENV', 'made by make setup'])
@pytest.mark.parametrize('script', ['dist_train', 'slurm_test'])
def test_scripts__interpreter(tmp_path, script, given):
    """Of PYTHON, else of the active environment, else of the one beside the tools."""
    tools, programs = tmp_path / 'tools', tmp_path / 'bin'
    tools.mkdir(), programs.mkdir()
    shutil.copy(REPOSITORY / 'tools' / f'{script}.sh', tools)
    for path in (programs / 'srun', tmp_path / '.venv/bin/python', tmp_path / 'active/bin/python'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('#!/bin/sh\necho $0 "$@"\n')
        path.chmod(0o755)
    env = {'PATH': f'{programs}:/usr/bin:/bin'}
    if given == 'PYTHON':
        env['PYTHON'] = expected = shutil.copy(programs / 'srun', tmp_path / 'mine')
        env['VIRTUAL_ENV'] = str(tmp_path / 'active')
    elif given == 'VIRTUAL_ENV':
        env[given], expected = str(tmp_path / 'active'), tmp_path / 'active/bin/python'
    else:
        expected = f'{tools}/../.venv/bin/python'
    done = subprocess.run(['bash', str(tools / f'{script}.sh'), 'a', 'b', 'c', 'd'],
                          capture_output=True, text=True, env=env)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(expected) in done.stdout
