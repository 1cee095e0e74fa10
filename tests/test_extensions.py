"""A projection and losses from outside of the package, wherever its own ones work.

The first two are the example of docs/config.md.
"""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cached_runs import cached_run, make_cache, write_files
from detectors import random_batch
from mmengine.registry import MODELS
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
from torch import Tensor

from rdimkd_det import ConfigError
from rdimkd_det.distiller import distilled_student
from rdimkd_det.distiller.build_loss import check_losses
from rdimkd_det.reports.comparison import training_charts
from rdimkd_det.reports.pictures.views import view_level
from rdimkd_det.reports.runs import read_runs


def import_example() -> ModuleType:
    """Import the file that docs/config.md shows, as ``custom_imports`` would."""
    page = (REPOSITORY / 'docs/config.md').read_text(encoding='utf-8')
    (source,) = re.findall(r'```python\n# my_losses\.py\n(.+?)```', page, re.DOTALL)
    module = sys.modules['my_losses'] = ModuleType('my_losses')
    exec(source, vars(module))
    return module


CosineLoss = import_example().CosineLoss


@MODELS.register_module()
class ScaledCosineLoss(CosineLoss):
    """``CosineLoss`` of the maps' energies, without adapters, times a learned scale."""

    name = 'scaled_cosine'
    uses_adapters = False

    def __init__(self, initial: float = 1.0, **options) -> None:
        super().__init__(**options)
        self.scale = torch.nn.Parameter(torch.full((self.num_levels,), initial))

    def distance(self, level: int, student: Tensor, teacher: Tensor) -> Tensor:
        """See :meth:`FeatureLoss.distance`."""
        student, teacher = (it.square().mean(1).flatten(1) for it in (student, teacher))
        return self.scale[level] * super().distance(level, student, teacher)


USERS = {
    'projection': dict(projection=dict(type='StrongestChannels', kept=6)),
    'loss': dict(type='CosineLoss', loss_weight={8: 1.0, 16: 0.5, 32: 0.0}),
    'own parameters': dict(type='ScaledCosineLoss', initial=0.5),
}
STRIDES = (8, 16, 32)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Data, and a teacher whose biases are not 0, as after a training."""
    folder = tmp_path_factory.mktemp('extensions')
    write_data(folder / 'data')
    teacher = write_teacher(folder / 'teacher')
    content = load(teacher['checkpoint'])
    for name, value in content['state_dict'].items():
        if name.endswith('.bias'):
            value.add_(torch.rand(value.shape))
    torch.save(content, teacher['checkpoint'])
    return folder


def config(files, work_dir, user, max_epochs=2, **overrides):
    loss = dict(USERS[user])
    if 'type' in loss:
        loss['projection'] = None
    teacher = {name: str(files / f'teacher/teacher.{end}')
               for name, end in (('config', 'py'), ('checkpoint', 'pth'))}  # fmt: skip
    model = distilled(fcos(), teacher, **loss)
    if 'type' in loss:
        del model.losses.neck['projection']
    cfg = run_config(files / 'data', work_dir, model, max_epochs)
    cfg.custom_imports.imports = ['rdimkd_det', 'my_losses']
    cfg.custom_hooks[0].monitor_interval = 1
    cfg.merge_from_dict(overrides)
    return cfg


@pytest.fixture(scope='module', params=['projection', 'loss'])
def trained(files, request):
    """What is added, and the work directory of a training with it."""
    work_dir = files / f'whole {request.param}'
    train(config(files, work_dir, request.param))
    return request.param, work_dir


def logged(work_dir: Path) -> list[dict]:
    newest = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in newest.read_text().splitlines() if '"loss"' in line]


def test_train__logs_losses_weights_and_what_there_is_to_monitor(trained):
    user, work_dir = trained
    lines = logged(work_dir)
    assert len(lines) == 4
    name = 'rdimkd' if user == 'projection' else 'cosine'
    losses = [[line[f'loss_{name}_neck_s{s}'] for s in STRIDES] for line in lines]
    assert all(value > 0 for line in losses for value in line[:2])
    assert all((line[2] > 0) == (user == 'projection') for line in losses)
    explained = [f'explained_{where}_neck_s{s}' for where in ('in', 'out') for s in STRIDES]
    for line in lines:
        assert (set(explained) <= line.keys()) == (user == 'projection')
        if user == 'loss':
            assert line['rdimkd_weight_neck_s16'] == 0.5
        else:
            assert line['rdimkd_weight_neck'] == 1


def test_train__state_of_the_extension_is_in_the_checkpoint_alone(trained):
    user, work_dir = trained
    checkpoint = load(work_dir / 'epoch_2.pth')
    MODELS.build(fcos()).load_state_dict(checkpoint['state_dict'], strict=True)
    state = checkpoint['distill']
    if user == 'projection':
        assert state['losses.neck.projections.2.basis'].shape == (24, 6)
        assert 0 < state['losses.neck.projections.2.variance_kept'] <= 1
    else:
        assert state['losses.neck.adapters.1.weight'].shape == (24, 16, 1, 1)


@pytest.mark.slow
def test_resume__equals_uninterrupted_run(trained, files, tmp_path):
    user, work_dir = trained
    train(config(files, tmp_path, user, max_epochs=1))
    train(config(files, tmp_path, user, resume=True))
    expected, found = load(work_dir / 'epoch_2.pth'), load(tmp_path / 'epoch_2.pth')
    assert_equal(expected['state_dict'], found['state_dict'])
    assert_equal(expected['distill'], found['distill'])


def test_resume__with_another_loss_is_refused(trained, files, tmp_path):
    user, work_dir = trained
    other = 'loss' if user == 'projection' else 'projection'
    cfg = config(files, tmp_path, other, max_epochs=3, resume=True)
    cfg.load_from = str(work_dir / 'epoch_2.pth')
    with pytest.raises(ConfigError, match='another teacher or other losses'):
        train(cfg)


def test_preflight__measures_it(trained, files, tmp_path, capsys):
    user, _ = trained
    config(files, tmp_path / 'work', user).dump(tmp_path / 'config.py')
    with pytest.raises(SystemExit) as stopped:
        call_tool('preflight.py', tmp_path / 'config.py', '--samples', 4,
                  '--json', tmp_path / 'report.json')  # fmt: skip
    assert stopped.value.code == 0, capsys.readouterr().err
    report = json.loads((tmp_path / 'report.json').read_text())
    levels, gradients, _ = report['tables']
    at = {name: index for index, name in enumerate(levels['columns'])}
    assert [row[at['d']] for row in levels['rows']] == [
        'to be fitted' if user == 'projection' else '-'
    ] * 3
    assert len(gradients['rows']) == 3
    assert report['figures']['recommended_loss_weight']['neck'] > 0


def test_export__of_the_trained_student(trained, files, tmp_path, capsys):
    user, work_dir = trained
    config(files, work_dir, user).dump(tmp_path / 'config.py')
    call_tool('export_student.py', work_dir / 'epoch_2.pth', '--out', tmp_path / 'student.pth',
              '--config', tmp_path / 'config.py')  # fmt: skip
    assert 'all weights equal' in capsys.readouterr().out
    (path,) = tmp_path.glob('student-*.pth')
    MODELS.build(fcos()).load_state_dict(load(path)['state_dict'], strict=True)


def test_report__draws_its_losses(trained):
    user, work_dir = trained
    name = 'neck_s16' if user == 'projection' else 'cosine_neck_s16'
    drawings = training_charts(read_runs([work_dir]))
    (of_levels,) = [svg for svg, caption in drawings if 'distillation loss of each' in caption]
    assert f'>{name}<' in of_levels and 'bbox' not in of_levels


@pytest.mark.parametrize('user', USERS)
def test_build__leaves_the_students_random_numbers_alone(files, tmp_path, user):
    cfg = config(files, tmp_path, user)
    state = torch.get_rng_state()
    plain = MODELS.build(cfg.model.student)
    after = torch.rand(3)
    torch.set_rng_state(state)
    model = MODELS.build(cfg.model)
    assert torch.equal(torch.rand(3), after)
    assert_equal(dict(model.state_dict()), dict(plain.state_dict()))


def test_loss__of_its_own_parameters_trains_them(files, tmp_path):
    runner = train(config(files, tmp_path, 'own parameters', max_epochs=1))
    distill = distilled_student(runner.model).distill
    assert [name for name, _ in distill.named_parameters()] == ['losses.neck.scale']
    assert (distill.losses['neck'].scale != 0.5).all()


@pytest.mark.parametrize('user', ['loss', 'own parameters'])
def test_loss__switched_off_gives_every_parameter_a_gradient_of_zero(files, tmp_path, user):
    """DistributedDataParallel waits for all gradients."""
    model = MODELS.build(config(files, tmp_path, user).model).train()
    model.distill.set_factor(0)
    data = model.data_preprocessor(random_batch(num_classes=3), training=True)
    model.parse_losses(model(**data, mode='loss'))[0].backward()
    parameters = list(model.distill.parameters())
    assert parameters and all(it.grad is not None and not it.grad.any() for it in parameters)


def test_loss__auto_weight(files, tmp_path):
    cfg = config(files, tmp_path, 'loss', **{'model.losses.neck.loss_weight': 'auto'})
    runner = train(cfg)
    (loss,) = distilled_student(runner.model).distill.losses.values()
    assert 0 < loss.auto_weight.item() != 1


@pytest.mark.parametrize(
    'given, message',
    [
        (torch.ones(2, 3), r'a Tensor of shape \(2, 3\)\.$'),
        (torch.ones(1), r'a Tensor of shape \(1,\)\.$'),
        (0.5, r'a float\.$'),
    ],
)
def test_loss__whose_distance_is_no_scalar(given, message):
    class Forgot(CosineLoss):
        def distance(self, level, student, teacher):
            return given

    maps = [torch.randn(2, 5, 6, 8)]
    loss = Forgot(student_channels=5, teacher_channels=5, num_levels=1, level_names=['neck_s8'])
    with pytest.raises(ValueError, match=rf'Forgot at neck_s8: .* 0-dim tensor.* got {message}'):
        loss(maps, maps)


def test_pictures__of_a_loss_without_a_subspace_compare_whole_maps():
    loss = CosineLoss(student_channels=5, teacher_channels=5, num_levels=1)
    teacher = torch.randn(1, 5, 6, 8)
    view = view_level(loss, 0, {'same': 3 * teacher, 'other': torch.randn(1, 5, 6, 8)}, teacher)
    assert view.teacher.shape == (6, 8, 3)
    assert view.students['same'].explained == pytest.approx(1, abs=1e-4)
    assert view.students['same'].difference.max() < 1e-3 < view.students['other'].difference.min()


def test_loss__that_is_none(files, tmp_path):
    for kind in ('FocalLoss', 'StrongestChannels'):
        with pytest.raises(ConfigError, match=rf'neck: {kind} is no loss of feature maps; .* must'):
            check_losses(dict(neck=dict(type=kind)))


@pytest.mark.parametrize(
    'loss, message',
    [
        (dict(type='CosineLoss', los_weight=1), r"\(CosineLoss\) has no option 'los_weight'; did"),
        (dict(type='ScaledCosineLoss', inital=1), "option 'inital'; did you mean 'initial'"),
        (dict(type='ScaledCosineLoss', resise=1), "option 'resise'; did you mean 'resize'"),
        (dict(type='CosineLoss', teacher_module=3), 'teacher_module must be a path like neck'),
        (dict(type='RdimKDLoss', projection=dict(type='StrongestChannels', kep=1)), "'kept'"),
    ],
)
def test_options__misspelled(loss, message):
    with pytest.raises(ConfigError, match=message):
        check_losses(dict(neck=loss))


def test_cache__refuses_a_loss_of_whole_maps(files, tmp_path, capsys):
    config(files, tmp_path / 'work', 'loss').dump(tmp_path / 'config.py')
    with pytest.raises(SystemExit) as stopped:
        call_tool('cache_teacher.py', tmp_path / 'config.py', '--out', tmp_path / 'cache')
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and not (tmp_path / 'cache').exists()
    assert "the loss at 'neck' (CosineLoss) has no projection and compares whole maps" in line


@pytest.mark.slow
def test_cache__with_a_users_projection(tmp_path):
    folder = write_files(tmp_path)
    run = cached_run(folder)
    run.model.losses.neck.projection = USERS['projection']['projection']
    run.custom_imports.imports = ['rdimkd_det', 'my_losses']
    make_cache(run)
    run.work_dir = str(tmp_path / 'work')
    trained = train(run)
    assert distilled_student(trained.model).distill.losses['neck'].fitted
    assert all(0 < line['loss_rdimkd_neck_s8'] < 4 for line in logged(tmp_path / 'work'))
