import json
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_distributed
from runs import (
    assert_equal,
    distilled,
    fcos,
    load,
    run_config,
    train,
    trained_losses,
    write_data,
    write_teacher,
)
from torch import nn

from rdimkd_det import ConfigError, DistillHook, RdimKDLoss
from rdimkd_det.distiller.monitoring import (
    Monitor,
    effective_weights,
    explained_share,
    explained_shares,
)
from rdimkd_det.stopwatch import peak_memory


def reference_share(student, teacher):
    """Return the explained share from NumPy's correlation coefficient of each direction."""
    explained, total = 0.0, 0.0
    for k in range(teacher.shape[1]):
        s, t = student[:, k].double().numpy().ravel(), teacher[:, k].double().numpy().ravel()
        explained += t.var() * max(np.corrcoef(s, t)[0, 1], 0) ** 2
        total += t.var()
    return explained / total


def make_loss(**options):
    options = {
        'projection': dict(type='RandomProjection', dim=3),
        'student_channels': 5,
        'teacher_channels': 7,
        'num_levels': 2,
        'level_names': ['neck_s8', 'neck_s16'],
        **options,
    }
    return RdimKDLoss(**options)


class TestExplainedShare:
    def test_explained_share__equals_reference(self):
        teacher = torch.randn(3, 4, 35)
        student = torch.randn(3, 4, 35) + 0.7 * teacher
        student[:, 1] *= -3
        teacher[:, 2] *= 10
        share = explained_share(student, teacher)
        assert share.item() == pytest.approx(reference_share(student, teacher), rel=1e-5)
        assert 0.1 < share < 0.9

    @pytest.mark.parametrize(
        'scale, shift, expected', [(1.0, 0.0, 1.0), (0.01, 300.0, 1.0), (-1.0, 0.0, 0.0)]
    )
    def test_explained_share__asks_for_no_scale_but_for_the_sign(self, scale, shift, expected):
        teacher = torch.randn(2, 3, 50, dtype=torch.float64)
        share = explained_share(scale * teacher + shift, teacher)
        assert share.item() == pytest.approx(expected, abs=1e-6)

    def test_explained_share__large_directions_count_more(self):
        teacher = torch.randn(1, 2, 1000, dtype=torch.float64)
        teacher[:, 0] *= 3
        student = teacher.clone()
        student[:, 1] = 0
        variances = teacher.var((0, 2))
        expected = (variances[0] / variances.sum()).item()
        assert explained_share(student, teacher).item() == pytest.approx(expected)

    @pytest.mark.parametrize('shape', [(1, 3, 1), (2, 3, 4)])
    def test_explained_share__nothing_varies(self, shape):
        constant = torch.ones(shape)
        assert explained_share(constant, constant).item() == 0

    def test_explained_share__two_processes_compute_what_one_does(self, tmp_path):
        teacher = torch.randn(5, 3, 20) + torch.arange(5.0)[:, None, None]
        student = teacher + torch.randn(5, 3, 20)
        parts = [slice(0, 2), slice(2, 5)]
        shares = run_distributed(
            lambda rank: explained_share(student[parts[rank]], teacher[parts[rank]]), tmp_path
        )
        expected = reference_share(student, teacher)
        assert [share.item() for share in shares] == pytest.approx([expected] * 2, rel=1e-5)


class TestExplainedShares:
    @pytest.mark.parametrize('resize', [None, 'student', 'teacher'])
    def test_explained_shares__equals_explicit_projector(self, resize):
        loss = make_loss(resize=resize)
        size = (4, 6) if resize is None else (8, 12)
        student = [torch.randn(2, 5, 4, 6), torch.randn(2, 5, 4, 6)]
        teacher = [torch.randn(2, 7, *size), torch.randn(2, 7, *size)]
        shares = explained_shares(loss, student, teacher)
        for level, name in enumerate(loss.level_names):
            s, t = student[level], teacher[level]
            if resize == 'student':
                s = nn.functional.interpolate(s, size=(8, 12), mode='bilinear')
            elif resize == 'teacher':
                t = nn.functional.interpolate(t, size=(4, 6), mode='bilinear')
            s = loss.adapters[level](s).flatten(2)
            basis = loss.projections[level].basis
            outside = torch.eye(7) - basis @ basis.T
            expected = {
                'in': reference_share((basis.T @ s).detach(), basis.T @ t.flatten(2)),
                'out': reference_share((outside @ s).detach(), outside @ t.flatten(2)),
            }
            for where, value in expected.items():
                share = shares[f'explained_{where}_{name}']
                assert share.item() == pytest.approx(value, rel=1e-4)
                assert not share.requires_grad

    def test_explained_shares__tells_inside_from_outside(self):
        loss = make_loss(student_channels=7, num_levels=1, level_names=['neck_s8'])
        basis = loss.projections[0].basis
        teacher = torch.randn(2, 7, 20, 30)
        inside = basis @ (basis.T @ teacher.flatten(2))
        noise = torch.randn(2, 7, 600)
        student = (inside + noise - basis @ (basis.T @ noise)).unflatten(2, (20, 30))
        shares = explained_shares(loss, [student], [teacher])
        assert shares['explained_in_neck_s8'].item() == pytest.approx(1, abs=1e-4)
        assert shares['explained_out_neck_s8'].item() < 0.05

    def test_explained_shares__teacher_from_a_cache(self):
        loss = make_loss()
        student, teacher = [torch.randn(2, 5, 4, 6)] * 2, [torch.randn(2, 7, 4, 6)] * 2
        live = explained_shares(loss, student, teacher)
        loss.teacher_projected = True
        cached = [
            torch.einsum('cd,nchw->ndhw', projection.basis, maps)
            for projection, maps in zip(loss.projections, teacher)
        ]
        shares = explained_shares(loss, student, cached)
        assert list(shares) == ['explained_in_neck_s8', 'explained_in_neck_s16']
        for name, share in shares.items():
            assert share.item() == pytest.approx(live[name].item(), rel=1e-4)

    def test_explained_shares__half_precision(self):
        loss = make_loss(student_channels=7)
        maps = [torch.randn(2, 7, 4, 6)] * 2, [torch.randn(2, 7, 4, 6)] * 2
        half = [[it.bfloat16() for it in side] for side in maps]
        same = [[it.float() for it in side] for side in half]
        assert explained_shares(loss, *half) == explained_shares(loss, *same)

    @pytest.mark.parametrize('student_channels', [7, 5])
    def test_explained_shares__small_complement_beside_large_means(self, student_channels):
        """In float32, with a complement that has a ten-thousandth of the variance."""
        loss = make_loss(student_channels=student_channels, num_levels=1, level_names=['s8'])
        basis = loss.projections[0].basis
        teacher = torch.einsum('cd,ndhw->nchw', 100 * basis, torch.randn(2, 3, 20, 30)) + 50
        teacher += torch.randn(2, 7, 20, 30)
        student = teacher[:, :student_channels] + torch.randn(2, student_channels, 20, 30)
        shares = explained_shares(loss, [student], [teacher])
        s = loss.adapters[0].double()(student.double()).detach().flatten(2)
        outside = torch.eye(7).double() - basis.double() @ basis.double().T
        expected = reference_share(outside @ s, outside @ teacher.double().flatten(2))
        assert shares['explained_out_s8'].item() == pytest.approx(expected, rel=1e-3)

    @pytest.mark.parametrize('student_channels', [64, 48])
    def test_explained_shares__take_a_fraction_of_the_maps_memory(self, student_channels):
        loss = make_loss(
            projection=dict(type='RandomProjection', dim=32),
            student_channels=student_channels,
            teacher_channels=64,
        )
        sizes = (60, 84), (30, 42)
        student = [torch.randn(2, student_channels, *size) for size in sizes]
        teacher = [torch.randn(2, 64, *size) for size in sizes]
        maps = sum(it.nbytes for it in (*student, *teacher))
        peak = peak_memory(lambda: explained_shares(loss, student, teacher), torch.device('cpu'))
        assert peak < 0.3 * maps

    def test_explained_shares__two_processes_with_one_exchange(self, tmp_path):
        loss = make_loss()
        student = [torch.randn(3, 5, 4, 6), torch.randn(3, 5, 2, 3)]
        teacher = [torch.randn(3, 7, 4, 6), torch.randn(3, 7, 2, 3)]
        teacher[0][2] += 4
        parts = [slice(0, 1), slice(1, 3)]

        def on_rank(rank):
            own = [[maps[parts[rank]] for maps in side] for side in (student, teacher)]
            with torch.profiler.profile() as profiler:
                shares = explained_shares(loss, *own)
            events = [event for event in profiler.events() if event.name.startswith('c10d')]
            return shares, len(events)

        expected = explained_shares(loss, student, teacher)
        for shares, num_exchanges in run_distributed(on_rank, tmp_path):
            assert num_exchanges == 1
            assert shares.keys() == expected.keys() and len(shares) == 4
            for name, share in shares.items():
                assert share.item() == pytest.approx(expected[name].item(), rel=1e-5)

    def test_monitor__tells_the_shares_of_a_due_call_as_numbers(self):
        monitor, loss = Monitor(), make_loss()
        student, teacher = [torch.randn(2, 5, 4, 6)] * 2, [torch.randn(2, 7, 4, 6)] * 2
        monitor([('neck', loss, student, teacher)])
        assert monitor.take() == {}
        monitor.due = True
        monitor([('neck', loss, student, teacher)])
        shares = explained_shares(loss, student, teacher)
        assert monitor.take() == {name: share.item() for name, share in shares.items()}
        assert not monitor.due and monitor.take() == {}

    def test_explained_shares__no_complement(self):
        loss = make_loss(projection=dict(type='IdentityProjection'))
        maps = [torch.randn(2, 5, 4, 6)] * 2, [torch.randn(2, 7, 4, 6)] * 2
        assert list(explained_shares(loss, *maps)) == [
            'explained_in_neck_s8',
            'explained_in_neck_s16',
        ]


class TestWeightsInForce:
    def test_weights_in_force__one_per_tap_or_per_level(self):
        loss = make_loss(loss_weight=2.0)
        loss.factor = 0.25
        assert effective_weights(loss) == {'rdimkd_weight_neck': 0.5}
        loss = make_loss(loss_weight=[2.0, 1.0])
        loss.factor = 0.5
        assert effective_weights(loss) == {
            'rdimkd_weight_neck_s8': 1.0,
            'rdimkd_weight_neck_s16': 0.5,
        }

    def test_weights_in_force__auto(self):
        loss = make_loss(loss_weight='auto')
        assert effective_weights(loss) == {}
        loss.note_balance(torch.tensor(3.0 / loss.auto_share))
        assert effective_weights(loss) == {'rdimkd_weight_neck': 3.0}


def logged(work_dir):
    newest = max(Path(work_dir).glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in newest.read_text().splitlines()]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp('files')
    return write_data(root / 'data'), write_teacher(root / 'teacher')


def config(files, work_dir, monitor_interval, **hook):
    data, teacher = files
    cfg = run_config(data, work_dir, distilled(fcos(), teacher), max_epochs=2)
    cfg.custom_hooks[0].update(monitor_interval=monitor_interval, **hook)
    return cfg


class TestDistillHook:
    @pytest.mark.parametrize('interval', [-1, 0.5, True, None])
    def test_monitor_interval__not_a_count(self, interval):
        with pytest.raises(ConfigError, match='monitor_interval must be a whole number'):
            DistillHook(monitor_interval=interval)

    @pytest.mark.slow
    def test_train__monitoring_changes_nothing(self, files, tmp_path):
        runs = {interval: tmp_path / str(interval) for interval in (0, 1)}
        for interval, work_dir in runs.items():
            train(config(files, work_dir, interval))
        first, second = (load(work_dir / 'epoch_2.pth') for work_dir in runs.values())
        assert_equal(first['state_dict'], second['state_dict'])
        assert_equal(first['distill'], second['distill'])
        assert trained_losses(runs[0]) == trained_losses(runs[1])
        assert not any('explained' in key for line in logged(runs[0]) for key in line)

    @pytest.mark.slow
    def test_train__logs_shares_and_weights_of_the_due_iterations(self, files, tmp_path):
        schedule = dict(decay='linear', stop=4, by_epoch=False)
        train(config(files, tmp_path, 3, schedule=schedule))
        lines = [line for line in logged(tmp_path) if 'loss' in line]
        assert len(lines) == 4
        strides = ('s8', 's16', 's32')
        names = {f'explained_{where}_neck_{s}' for where in ('in', 'out') for s in strides}
        assert not names & lines[1].keys()
        assert names < lines[2].keys()
        assert lines[2]['rdimkd_weight_neck'] == pytest.approx(0.5)
        assert all(0 <= lines[2][name] <= 1 for name in names)
        # The value of the third iteration stays until the sixth, and is no mean.
        assert {name: lines[3][name] for name in names} == {n: lines[2][n] for n in names}
