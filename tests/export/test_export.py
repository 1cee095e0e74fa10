"""Export of a student from a checkpoint: what is kept, what is dropped, what is refused."""

import hashlib
import json
import re
import resource
import shutil
import sys
from contextlib import contextmanager

import pytest
import torch
from documents import blocks
from mmdet.apis import init_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from runs import (
    REPOSITORY,
    assert_equal,
    call_tool,
    distilled,
    fcos,
    load,
    run_config,
    train,
    write_data,
    write_teacher,
)
from safetensors import torch as safetensors

from rdimkd_det import ConfigError
from rdimkd_det.export.student import plain_config, predict, read_student, write_student


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """Return the work directory of a distilled training of two validated epochs, with EMA."""
    folder = tmp_path_factory.mktemp('export')
    teacher = write_teacher(folder / 'teacher')
    config = run_config(write_data(folder / 'data'), folder / 'work', distilled(fcos(), teacher))
    config.train_cfg.val_interval = 1
    config.default_hooks.checkpoint.save_best = 'coco/bbox_mAP_50'
    config.custom_hooks.append(dict(type='EMAHook', momentum=0.5))
    train(config)
    shutil.rmtree(folder / 'teacher')  # exporting needs none
    return folder / 'work'


def config_of(work_dir):
    """Return the config that mmengine wrote into a work directory."""
    (path,) = work_dir.glob('*.py')
    return path


def export(capsys, *args) -> list[str]:
    call_tool('export_student.py', *args)
    return capsys.readouterr().out.splitlines()


def refused(capsys, *args) -> str:
    with pytest.raises(SystemExit) as stopped:
        call_tool('export_student.py', *args)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# What is written


@pytest.mark.smoke
def test_export__is_the_student_alone(work_dir, tmp_path, capsys):
    lines = export(capsys, work_dir / 'epoch_2.pth', '--out', tmp_path / 'out/student.pth')
    (path,) = (tmp_path / 'out').iterdir()
    assert re.fullmatch(r'student-[0-9a-f]{8}\.pth', path.name)
    assert path.stem[-8:] == hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert str(path) in lines[0] and 'all weights equal' in lines[1] and 'bit for bit' in lines[1]
    assert lines[2] == 'on a test image: 5 boxes are the same'
    content, source = load(path), load(work_dir / 'epoch_2.pth')
    assert content.keys() == {'meta', 'state_dict'}
    assert_equal(content['state_dict'], dict(source['state_dict']))
    MODELS.build(fcos()).load_state_dict(content['state_dict'], strict=True)
    assert path.stat().st_size < 0.4 * (work_dir / 'epoch_2.pth').stat().st_size


def test_export__of_ema_holds_the_averaged_weights(work_dir):
    source = load(work_dir / 'epoch_2.pth')
    weights = read_student(str(work_dir / 'epoch_2.pth')).weights
    raw = source['ema_state_dict']['module.neck.fpn_convs.0.conv.weight']
    averaged = weights['neck.fpn_convs.0.conv.weight']
    assert not torch.equal(raw, averaged)
    # momentum 0.5 after four iterations: the average is a mix of the five states.
    earlier = load(work_dir / 'epoch_1.pth')['ema_state_dict']['module.bbox_head.conv_cls.bias']
    latest = source['ema_state_dict']['module.bbox_head.conv_cls.bias']
    mean = weights['bbox_head.conv_cls.bias']
    assert (latest - mean).abs().max() < (latest - earlier).abs().max()


def test_export__metadata(work_dir):
    meta = read_student(str(work_dir / 'epoch_2.pth')).meta
    assert meta['dataset_meta']['classes'] == ['red', 'green', 'blue']
    assert meta['epoch'] == 2 and meta['iter'] == 4
    taught = meta['distillation']
    assert taught['teachers'] == [{'config': 'teacher.py', 'checkpoint': 'teacher.pth'}]
    assert taught['losses']['neck']['projection'] == {'type': 'PCAProjection', 'dim': 8}
    assert taught['hook'] == {'type': 'DistillHook', 'calibration_images': 8}
    assert {'mmdet_version', 'torch_version', 'rdimkd_det_version'} <= meta.keys()
    json.dumps(meta)  # plain data


def test_export__config_is_the_plain_students(work_dir):
    student = read_student(str(work_dir / 'epoch_2.pth'))
    config = Config.fromstring(student.meta['cfg'], '.py')
    assert config.model == Config(dict(model=fcos())).model
    assert [hook.type for hook in config.custom_hooks] == ['EMAHook']
    assert 'custom_imports' not in config and config.load_from is None
    assert config.optim_wrapper.optimizer.lr == 0.01


def test_export__result_is_that_of_these_weights(work_dir, tmp_path):
    """The result is logged after the checkpoint is written, so it is read from the log by epoch."""
    for epoch in (1, 2):
        shutil.copy(work_dir / f'epoch_{epoch}.pth', tmp_path)
    shutil.copy(config_of(work_dir), tmp_path)
    for run, results in (('20260101_000000', {1: 0.25, 2: 0.5}), ('20260102_000000', {2: 0.625})):
        log = tmp_path / run / 'vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        lines = [{'coco/bbox_mAP': value, 'step': epoch} for epoch, value in results.items()]
        lines.append({'loss': 1.0, 'step': 2})
        log.write_text('\n'.join([*map(json.dumps, lines), '{"coco/bbox_mAP": 0.']))
    found = [read_student(str(tmp_path / f'epoch_{n}.pth')).meta['metrics'] for n in (1, 2)]
    assert found == [{'coco/bbox_mAP': 0.25}, {'coco/bbox_mAP': 0.625}]


def test_export__in_the_middle_of_an_epoch_claims_no_result(work_dir, tmp_path):
    """Its `meta.epoch` matches the previous validation, which tested other weights."""
    content = torch.load(work_dir / 'epoch_1.pth', weights_only=False)
    shutil.copytree(work_dir, tmp_path / 'work')
    for iteration, has_metrics in ((2, True), (3, False)):  # an epoch is of 2 iterations
        content['meta']['iter'] = iteration
        torch.save(content, tmp_path / 'work' / f'iter_{iteration}.pth')
        meta = read_student(str(tmp_path / 'work' / f'iter_{iteration}.pth')).meta
        assert ('metrics' in meta) is has_metrics
    content['meta']['iter'] = 2
    del content['message_hub']  # how long an epoch was is not known
    torch.save(content, tmp_path / 'work' / 'unknown.pth')
    assert 'metrics' not in read_student(str(tmp_path / 'work' / 'unknown.pth')).meta


def test_export__result_as_mmengine_logs_it(work_dir):
    names = [f'coco/bbox_mAP{suffix}' for suffix in ('', '_50', '_75', '_l', '_m', '_s')]
    (best,) = work_dir.glob('best_*.pth')
    for path in (work_dir / 'epoch_1.pth', work_dir / 'epoch_2.pth', best):
        assert sorted(read_student(str(path)).meta['metrics']) == names


@pytest.mark.parametrize('by_epoch', [True, False])  # how the validations are logged
def test_export__result_of_an_iteration_based_training(tmp_path, by_epoch):
    """mmengine logs its validations without their iteration, unless it is told otherwise."""
    config = run_config(write_data(tmp_path / 'data'), tmp_path / 'work', fcos())
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=5, val_interval=2)
    config.train_dataloader.sampler = dict(type='InfiniteSampler')
    config.log_processor = dict(by_epoch=False)
    config.default_hooks.logger.log_metric_by_epoch = by_epoch
    config.default_hooks.logger.interval = 3
    config.default_hooks.checkpoint.update(by_epoch=False, interval=1)
    train(config)
    (log,) = (tmp_path / 'work').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    logged = [line['coco/bbox_mAP_50'] for line in lines if 'coco/bbox_mAP_50' in line]
    assert len(logged) == 3
    found = {}
    for iteration in range(1, 6):
        meta = read_student(str(tmp_path / 'work' / f'iter_{iteration}.pth')).meta
        found[iteration] = meta.get('metrics', {}).get('coco/bbox_mAP_50')
    assert found == {1: None, 2: logged[0], 3: None, 4: logged[1], 5: logged[2]}


def test_export__without_log_claims_no_result(work_dir, tmp_path):
    shutil.copy(work_dir / 'epoch_2.pth', tmp_path)
    shutil.copy(config_of(work_dir), tmp_path)
    assert 'metrics' not in read_student(str(tmp_path / 'epoch_2.pth')).meta


def test_export__same_input_same_name(work_dir, tmp_path):
    student = read_student(str(work_dir / 'epoch_2.pth'))
    names = {write_student(student, str(tmp_path / f'{n}' / 's.pth'))[0].name for n in (1, 2)}
    assert len(names) == 1


def test_export__mmdet_takes_it(work_dir, tmp_path):
    """MMDetection's API needs only the config and classes in the exported file."""
    source = read_student(str(work_dir / 'epoch_2.pth'))
    path, _ = write_student(source, str(tmp_path / 's.pth'))
    config = Config.fromstring(load(path)['meta']['cfg'], '.py')
    model = init_detector(config, str(path), device='cpu')
    assert model.dataset_meta['classes'] == ['red', 'green', 'blue']
    expected, found = predict(source.build()), predict(model)
    assert_equal(
        {key: torch.as_tensor(value) for key, value in expected.items()},
        {key: torch.as_tensor(value) for key, value in found.items()},
    )


def test_export__is_tested_with_the_config_of_a_resumed_training(work_dir, tmp_path):
    path, _ = write_student(read_student(str(work_dir / 'epoch_2.pth')), str(tmp_path / 's.pth'))
    config = Config.fromfile(config_of(work_dir))
    config.resume = True
    config.dump(tmp_path / 'resumed.py')
    call_tool('test.py', tmp_path / 'resumed.py', path, '--work-dir', tmp_path / 'test')


def test_export__of_a_plain_training(tmp_path, capsys):
    path = write_checkpoint(tmp_path / 'plain.pth', Config(dict(model=fcos())).pretty_text)
    export(capsys, path, '--out', tmp_path / 'student.pth')
    (path,) = tmp_path.glob('student-*.pth')
    assert 'distillation' not in load(path)['meta']


def test_export__safetensors(work_dir, tmp_path, capsys):
    lines = export(capsys, work_dir / 'epoch_2.pth', '--out', tmp_path / 'student.safetensors')
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r'student-[0-9a-f]{8}\.safetensors', path.name)
    assert path.stem[-8:] == hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert 'bit for bit' in lines[1] and lines[2] == 'on a test image: 5 boxes are the same'
    student = read_student(str(work_dir / 'epoch_2.pth'))
    found = safetensors.load_file(path)
    assert found.keys() == student.weights.keys()
    assert_equal({key: found[key] for key in student.weights}, dict(student.weights))
    header = path.read_bytes()
    header = json.loads(header[8 : 8 + int.from_bytes(header[:8], 'little')])['__metadata__']
    assert header.pop('format') == 'pt' and header.keys() == student.meta.keys()
    assert header['cfg'] == student.meta['cfg']
    for key in ('dataset_meta', 'metrics', 'distillation', 'epoch'):
        assert json.loads(header[key]) == student.meta[key]


def test_export__safetensors_as_the_docs_load_them(work_dir, tmp_path):
    student = read_student(str(work_dir / 'epoch_2.pth'))
    path, _ = write_student(student, str(tmp_path / 's.safetensors'))
    (code,) = [it.text for it in blocks(REPOSITORY / 'docs/export.md') if 'load_file' in it.text]
    names = {}
    exec(code.replace('fcos_r18-1a2b3c4d.safetensors', str(path)), names)
    assert names['model'].dataset_meta['classes'] == ['red', 'green', 'blue']
    expected, found = predict(student.build()), predict(names['model'])
    assert expected.keys() == found.keys() and len(found['scores'])
    for key, value in expected.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(found[key]))


def test_write_student__other_weights_in_safetensors_are_found(work_dir, tmp_path, monkeypatch):
    save = safetensors.save

    def save_others(weights, metadata):
        weights['bbox_head.conv_reg.bias'][0] += 1e-7
        return save(weights, metadata)

    monkeypatch.setattr(safetensors, 'save', save_others)
    with pytest.raises(ConfigError, match='weights that were written are not those'):
        write_student(read_student(str(work_dir / 'epoch_2.pth')), str(tmp_path / 's.safetensors'))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('scope', ['', 'mmdet.', 'rdimkd_det.'])
def test_plain_config__keeps_other_hooks_and_imports(scope):
    config = Config(
        dict(
            model=dict(type='RdimKDDistiller', student=dict(type='FCOS')),
            custom_hooks=[dict(type=f'{scope}DistillHook'), dict(type='NumClassCheckHook')],
            custom_imports=dict(imports=['rdimkd_det', 'mine'], allow_failed_imports=False),
        )
    )
    plain = plain_config(config)
    assert plain.model == dict(type='FCOS')
    assert plain.custom_hooks == [dict(type='NumClassCheckHook')]
    assert plain.custom_imports == dict(imports=['mine'], allow_failed_imports=False)
    assert config.model.type == 'RdimKDDistiller'  # left as it was


# What is refused


@pytest.mark.parametrize('change', ['other bias', 'other sign of zero', 'zeros', 'one less'])
def test_write_student__other_weights_in_the_file_are_found(
    work_dir, tmp_path, monkeypatch, change
):
    student = read_student(str(work_dir / 'epoch_2.pth'))
    if change == 'other sign of zero':  # the only change that == does not see
        student.weights['bbox_head.conv_reg.bias'].zero_()
    save = torch.save

    def save_others(content, file):
        weights = content['state_dict']
        if change == 'other bias':
            weights['bbox_head.conv_reg.bias'][0] += 1e-7
        elif change == 'other sign of zero':
            weights['bbox_head.conv_reg.bias'].copysign_(-weights['bbox_head.conv_reg.bias'])
        elif change == 'zeros':
            for value in weights.values():
                value.zero_()
        else:
            weights.pop('bbox_head.conv_reg.bias')
        save(content, file)

    monkeypatch.setattr(torch, 'save', save_others)
    with pytest.raises(ConfigError, match='weights that were written are not those'):
        write_student(student, str(tmp_path / 's.pth'))
    assert not list(tmp_path.iterdir())


def test_write_student__another_config_in_the_file_is_found(work_dir, tmp_path):
    student = read_student(str(work_dir / 'epoch_2.pth'))
    student.meta['cfg'] = student.meta['cfg'].replace('max_per_img=5', 'max_per_img=4')
    with pytest.raises(ConfigError, match='predictions differ'):
        write_student(student, str(tmp_path / 's.pth'))
    assert not list(tmp_path.iterdir())


def test_export__without_predictions_there_is_no_file(work_dir, tmp_path, capsys):
    config = read_student(str(work_dir / 'epoch_2.pth')).config
    config.model.test_cfg.nms.type = 'nmss'  # given as a file, it is trusted
    (tmp_path / 'c.py').write_text(config.pretty_text)
    args = ('--out', tmp_path / 'out/s.pth', '--config', tmp_path / 'c.py')
    line = refused(capsys, work_dir / 'epoch_2.pth', *args)
    assert "cannot be verified: NameError: name 'nmss' is not defined" in line
    assert not list((tmp_path / 'out').iterdir())


def test_export__without_a_box_it_says_so(tmp_path, capsys):
    config = Config(dict(model=fcos()))
    config.model.test_cfg.max_per_img = 0
    lines = export(
        capsys,
        write_checkpoint(tmp_path / 'w.pth', config.pretty_text),
        '--out',
        tmp_path / 's.pth',
    )
    assert 'all weights equal' in lines[1]
    assert lines[2] == 'on a test image: no box, so only weights are compared'


@pytest.mark.parametrize('value', [object(), OSError])
def test_write_student__predictions_that_cannot_be_compared(work_dir, tmp_path, monkeypatch, value):
    """Such as those of a detector that predicts something else than tensors, or needs a file."""
    student = read_student(str(work_dir / 'epoch_2.pth'))

    def predicts(model):
        if value is OSError:
            raise OSError('vocabulary.txt')
        return {'masks': value}

    monkeypatch.setattr('rdimkd_det.export.student.predict', predicts)
    with pytest.raises(ConfigError, match='cannot be verified: '):
        write_student(student, str(tmp_path / 's.pth'))
    assert not list(tmp_path.iterdir())


def test_write_student__weights_that_are_not_numbers(work_dir, tmp_path):
    student = read_student(str(work_dir / 'epoch_2.pth'))
    student.weights['bbox_head.conv_reg.bias'].fill_(float('nan'))
    assert write_student(student, str(tmp_path / 's.pth'))[0].exists()


def test_export__of_a_path_below_home(work_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('HOME', str(work_dir.parent))
    checkpoint = f'~/{work_dir.name}/epoch_2.pth'
    lines = export(capsys, checkpoint, '--out', tmp_path / 's.pth')
    assert ' MiB of ' in lines[0] and any(it.startswith('coco/bbox_mAP: ') for it in lines)


def test_export__own_modules_with_the_config_given(work_dir, tmp_path, capsys, monkeypatch):
    (tmp_path / 'own_detectors.py').write_text(
        'from mmdet.models import FCOS\n\n\nclass Mine(FCOS):\n    pass\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = read_student(str(work_dir / 'epoch_2.pth')).config
    config.model.type = 'own_detectors.Mine'
    (tmp_path / 'c.py').write_text(config.pretty_text)
    args = ('--out', tmp_path / 's.pth', '--config', tmp_path / 'c.py')
    assert '5 boxes' in export(capsys, work_dir / 'epoch_2.pth', *args)[2]


def write_checkpoint(path, cfg, weights=None):
    """Write a checkpoint that holds a config's text, and that config beside it."""
    weights = MODELS.build(fcos()).state_dict() if weights is None else weights
    torch.save(dict(meta=dict(cfg=cfg), state_dict=weights), path)
    path.with_name('config.py').write_text(cfg)
    return path


@pytest.mark.parametrize(
    'text, expected',
    [
        ('train_cfg = dict(max_epochs=1)', 'has no model'),
        ("model = dict(type='Nonesuch')", 'cannot be built: KeyError'),
        ("model = dict(type='FCOS')\ncustom_hooks = 5", 'is not of a detector (TypeError'),
        ("model = dict(student=dict(type='FCOS'))", 'is not of a detector (AttributeError'),
        ('model = dict(', 'cannot be read: SyntaxError'),
    ],
)
def test_export__config_of_no_detector(tmp_path, capsys, text, expected):
    path = write_checkpoint(tmp_path / 'w.pth', text)
    assert expected in refused(capsys, path, '--out', tmp_path / 'out/s.pth')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('beside', [0, 2])
def test_export__without_its_config_beside_it(tmp_path, capsys, beside):
    path = write_checkpoint(tmp_path / 'w.pth', Config(dict(model=fcos())).pretty_text)
    if beside:
        shutil.copy(tmp_path / 'config.py', tmp_path / 'other.py')
    else:
        (tmp_path / 'config.py').unlink()
    line = refused(capsys, path, '--out', tmp_path / 'out/s.pth')
    assert 'w.pth: the config of its training is not beside it; give the file: --config.' in line
    assert not (tmp_path / 'out').exists()


def test_export__config_is_that_of_its_own_run(tmp_path):
    """A work directory may hold several runs; the checkpoint says when its own began."""
    path, other = tmp_path / 'w.pth', Config(dict(model=fcos(fpn_channels=24))).pretty_text
    write_checkpoint(path, other)
    content = load(path)
    for run, text in (('20260101_000000', Config(dict(model=fcos())).pretty_text),
                      ('20260102_000000', other)):  # fmt: skip
        log = tmp_path / run / 'vis_data'
        log.mkdir(parents=True)
        (log / 'config.py').write_text(text)
    content['meta']['experiment_name'] = 'fcos_20260101_000000'
    torch.save(content, path)
    assert read_student(str(path)).config.model == Config(dict(model=fcos())).model
    # A name made up by an untrusted checkpoint leads nowhere else.
    content['meta']['experiment_name'] = '../20260101_000000/../20260101_00000'
    torch.save(content, path)
    assert read_student(str(path)).config.model.neck.out_channels == 24


@pytest.mark.parametrize('beside', [False, True])
def test_export__config_in_the_checkpoint_is_never_run(tmp_path, capsys, monkeypatch, beside):
    monkeypatch.chdir(tmp_path)
    weights = MODELS.build(fcos()).state_dict()
    meta = dict(
        cfg="import os\nos.mkdir('payload_ran')", config="import os; os.mkdir('payload_ran')"
    )
    torch.save(dict(meta=meta, state_dict=weights), 'w.pth')
    if beside:
        (tmp_path / 'config.py').write_text(Config(dict(model=fcos())).pretty_text)
        assert 'wrote' in export(capsys, 'w.pth', '--out', 's.pth')[0]
    else:
        assert 'give the file: --config' in refused(capsys, 'w.pth', '--out', 's.pth')
    assert not (tmp_path / 'payload_ran').exists()


def test_export__config_without_a_scope(tmp_path, capsys):
    text = f'default_scope = None\n{Config(dict(model=fcos())).pretty_text}'
    path = write_checkpoint(tmp_path / 'w.pth', text)
    assert 'wrote' in export(capsys, path, '--out', tmp_path / 's.pth')[0]


def test_export__teacher_config_is_never_run(tmp_path, capsys):
    teacher = tmp_path / 'teacher/teacher.py'
    teacher.parent.mkdir()
    teacher.write_text(f"open({str(tmp_path / 'payload_ran')!r}, 'w')")
    model = distilled(fcos(), dict(config=str(teacher), checkpoint='none.pth'))
    path = write_checkpoint(tmp_path / 'w.pth', Config(dict(model=model)).pretty_text)
    export(capsys, path, '--out', tmp_path / 's.pth')
    assert not (tmp_path / 'payload_ran').exists()


def test_export__config_given(work_dir, tmp_path, capsys):
    content = load(work_dir / 'epoch_2.pth')
    path = write_checkpoint(tmp_path / 'w.pth', 'import os', content['state_dict'])
    (tmp_path / 'config.py').unlink()
    (tmp_path / 'plain.py').write_text(Config(dict(model=fcos())).pretty_text)
    lines = export(capsys, path, '--out', tmp_path / 's.pth', '--config', tmp_path / 'plain.py')
    assert '5 boxes' in lines[2]
    other = Config(dict(model=fcos(fpn_channels=24))).pretty_text
    (tmp_path / 'other.py').write_text(other)
    line = refused(capsys, path, '--out', tmp_path / 'x/s.pth', '--config', tmp_path / 'other.py')
    assert f'does not match {tmp_path / "other.py"}' in line and 'of another shape' in line
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('option, value', [('--out', 's.pt'), ('--onnx', 's.pth')])
def test_export__file_names(work_dir, tmp_path, capsys, option, value):
    args = {'--out': tmp_path / 's.pth', '--onnx': tmp_path / 's.onnx', option: value}
    line = refused(capsys, work_dir / 'epoch_2.pth', *[x for pair in args.items() for x in pair])
    assert f'{option} must be a' in line


@pytest.mark.parametrize('option', ['--out', '--onnx'])
@pytest.mark.parametrize('folder', ['file', 'file/below', '/proc/none'])
def test_export__into_a_folder_that_cannot_be(work_dir, tmp_path, capsys, option, folder):
    if option == '--onnx':
        pytest.importorskip('onnxruntime')
    (tmp_path / 'file').write_text('')
    bad = tmp_path / folder / ('s.pth' if option == '--out' else 's.onnx')
    args = {'--out': tmp_path / 's.pth', option: bad}
    line = refused(capsys, work_dir / 'epoch_2.pth', *[x for pair in args.items() for x in pair])
    assert f'{option} {bad.parent}/s' in line and 'cannot be written' in line
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@contextmanager
def files_limited_to(num_bytes):
    """Limit the size of written files, so that the kernel fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_write_student__disk_that_takes_half_of_it(work_dir, tmp_path):
    student = read_student(str(work_dir / 'epoch_2.pth'))
    with files_limited_to(100_000), pytest.raises(ConfigError, match=r'cannot be written .*large'):
        write_student(student, str(tmp_path / 's.pth'))
    assert not list(tmp_path.iterdir())


# ONNX


def test_onnx__not_installed(work_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    monkeypatch.delitem(sys.modules, 'rdimkd_det.export.onnx', raising=False)
    line = refused(
        capsys, work_dir / 'epoch_2.pth', '--out', tmp_path / 's.pth', '--onnx', tmp_path / 's.onnx'
    )
    assert 'not installed (onnx): pip install "rdimkd_det[onnx]"' in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_onnx__gives_what_the_student_gives(work_dir, tmp_path, capsys):
    onnx = pytest.importorskip('onnx')
    onnxruntime = pytest.importorskip('onnxruntime')
    path = tmp_path / 'student.onnx'
    args = ('--out', tmp_path / 's.pth', '--onnx', path)
    lines = export(capsys, work_dir / 'epoch_2.pth', *args)
    assert str(path) in lines[-1] and 'onnxruntime and PyTorch differ by' in lines[-1]
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    kinds = ('cls_scores', 'bbox_preds', 'centernesses')
    names = [f'{kind}_{level}' for kind in kinds for level in range(3)]
    assert [output.name for output in session.get_outputs()] == names
    detector = read_student(str(work_dir / 'epoch_2.pth')).build()
    inputs = torch.randn(3, 3, 96, 160)
    with torch.no_grad():
        expected = [feats for kind in detector(inputs, mode='tensor') for feats in kind]
    for one, other in zip(expected, session.run(None, {'inputs': inputs.numpy()})):
        torch.testing.assert_close(one, torch.from_numpy(other), rtol=1e-3, atol=1e-4)
    metadata = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    assert metadata['classes'] == "['red', 'green', 'blue']"
    assert metadata['mean'] == '[123.675, 116.28, 103.53]' and metadata['bgr_to_rgb'] == 'True'
    assert len(list(tmp_path.iterdir())) == 2  # no temporary file is left


@pytest.mark.slow
@pytest.mark.parametrize('change', [1.0, float('nan')])
def test_onnx__too_different_is_not_written(work_dir, tmp_path, monkeypatch, change):
    pytest.importorskip('onnxruntime')
    from rdimkd_det.export import onnx

    student = read_student(str(work_dir / 'epoch_2.pth'))
    detector = student.build()
    # A model that is not what was exported: another bias.
    original = onnx._add_metadata

    def change_the_detector(*args):
        original(*args)
        with torch.no_grad():
            detector.bbox_head.conv_cls.bias += change

    monkeypatch.setattr(onnx, '_add_metadata', change_the_detector)
    with pytest.raises(ConfigError, match='onnxruntime and PyTorch differ by'):
        onnx.export_onnx(detector, student, tmp_path / 's.onnx')
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_onnx__disk_that_takes_half_of_it(work_dir, tmp_path):
    pytest.importorskip('onnxruntime')
    from rdimkd_det.export.onnx import export_onnx

    student = read_student(str(work_dir / 'epoch_2.pth'))
    with (
        files_limited_to(100_000),
        pytest.raises(ConfigError, match=r'--onnx .* cannot be written'),
    ):
        export_onnx(student.build(), student, tmp_path / 's.onnx')
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_onnx__operator_that_onnx_lacks(small_config, tmp_path):
    pytest.importorskip('onnxruntime')
    from rdimkd_det.export.onnx import export_onnx
    from rdimkd_det.export.student import Student

    config = small_config('vfnet/vfnet_r50_fpn_1x_coco.py', depth=18)
    detector = MODELS.build(config.model).eval()
    student = Student(config, detector.state_dict(), {})
    with pytest.raises(ConfigError, match=r'VFNet cannot be exported: .*(DeformConv|deform_conv)'):
        export_onnx(detector, student, tmp_path / 's.onnx')
    assert not list(tmp_path.iterdir())


def test_onnx__two_stages_are_refused(small_config, tmp_path):
    pytest.importorskip('onnxruntime')
    from rdimkd_det.export.onnx import export_onnx
    from rdimkd_det.export.student import Student

    config = small_config('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', depth=18)
    detector = MODELS.build(config.model).eval()
    student = Student(config, detector.state_dict(), {})
    with pytest.raises(ConfigError, match='FasterRCNN is no single-stage detector'):
        export_onnx(detector, student, tmp_path / 's.onnx')
