import copy
import json
import os
from dataclasses import replace

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from runs import REPOSITORY, call_tool

from experiments.digits.images import DigitsOptions
from experiments.digits.plots import draw
from experiments.digits.study import STUDY
from experiments.digits.table import GROUPS, TABLE, TEACHERS
from experiments.digits.variants import RedrawnProjection, SeveralRandomProjections
from experiments.plan import Plan, full_config, write_config
from experiments.results import keep_finished
from experiments.stages import open_runs
from experiments.summary import (
    Outcome,
    collect,
    difference,
    insert_report,
    markdown_report,
    markdown_table,
    mean_and_error,
)
from rdimkd_det import ConfigError, RandomProjection, RdimKDDistiller, RdimKDLoss
from rdimkd_det.files.atomic import write_json
from rdimkd_det.functional import standardized_loss

select = STUDY.select


def maps(channels=6, num=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(num, channels, 5, 7, generator=generator, dtype=torch.float64)]


def build_loss(**options):
    options = {'student_channels': 6, 'teacher_channels': 6, 'num_levels': 1, **options}
    return MODELS.build({'type': 'RdimKDLoss', **options}).double()


def finish(run, ap=0.5):
    """Write the files of a finished training."""
    scalars = run.work_dir / '20260101_000000' / 'vis_data' / 'scalars.json'
    scalars.parent.mkdir(parents=True)
    lines = [{'loss': 1.0, 'time': 0.5, 'epoch': 1, 'step': run.iterations}]
    for epoch in range(1, run.epochs + 1):
        keys = ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75')
        lines.append({**dict.fromkeys(keys, ap * epoch / run.epochs), 'step': epoch})
    scalars.write_text('\n'.join(map(json.dumps, lines)))
    run.checkpoint.write_bytes(b'weights')
    write_json(run.work_dir / 'done.json', {'digest': run.digest})


@pytest.fixture
def plan(tmp_path):
    folders = (tmp_path / name for name in ('work', 'digits', 'results'))
    return Plan(STUDY, *folders, STUDY.images)


class TestTable:
    @pytest.mark.parametrize('name', TABLE)
    def test_full_config__builds_what_the_entry_says(self, name, monkeypatch):
        monkeypatch.chdir(REPOSITORY)
        experiment = TABLE[name]
        cfg = copy.deepcopy(full_config(experiment))
        if experiment.teacher:
            cfg.model.teacher.checkpoint = 'teacher.pth'
        model = MODELS.build(cfg.model)
        assert isinstance(model, RdimKDDistiller) == bool(experiment.teacher)
        for key, value in experiment.changes.items():
            if not isinstance(value, (dict, list)):
                node = cfg
                for part in key.split('.'):
                    node = node[part]
                assert node == value

    def test_table__every_question_of_the_evaluation_has_its_rows(self):
        dims = {
            it.changes['model.losses']['neck']['projection']['dim']
            for it in select(['dim'])
            if it.teacher
        }
        assert dims == {8, 16, 32, 64, 128}
        for rival in ('rdimkd_p', 'pkd'):
            weights = {
                it.changes['model.losses']['neck']['loss_weight']
                for it in select(['weight'])
                if it.name.startswith(rival)
            }
            assert weights == {0.1, 0.3, 1.0, 3.0, 10.0}
        names = {it.name for it in select(['main'])}
        assert names == {'plain', 'pkd', 'rdimkd_p', 'rdimkd_r', 'rdimkd_a'}
        assert {group for it in TABLE.values() for group in it.groups} == set(GROUPS)
        assert all(it.teacher in TEACHERS for it in TABLE.values() if it.teacher)

    def test_table__the_plain_student_differs_in_distillation_only(self):
        for experiment in TABLE.values():
            if experiment.teacher:
                cfg, plain = full_config(experiment), full_config(TABLE[experiment.plain])
                assert cfg.model.student == plain.model
                assert experiment.rival is None or experiment.rival in TABLE
                for key in ('train_cfg', 'param_scheduler', 'optim_wrapper', 'train_dataloader'):
                    assert cfg[key] == plain[key]

    def test_select__names_groups_and_all(self):
        assert [it.name for it in select(['pkd', 'bases', 'pkd'])] == [
            'pkd', 'rdimkd_p', 'rdimkd_r', 'rdimkd_r_redrawn', 'rdimkd_r_three'
        ]  # fmt: skip
        assert {it.name for it in select([])} == TABLE.keys() - TEACHERS.keys()
        with pytest.raises(ConfigError, match='rdimkd_q is neither an experiment nor a group'):
            select(['rdimkd_q'])


class TestVariants:
    def test_redrawn_projection__new_basis_each_training_step_only(self):
        loss = build_loss(type='RedrawingLoss', projection=dict(type='RedrawnProjection', dim=3))
        (projection,) = loss.projections
        bases = []
        for _ in range(3):
            loss(maps(), maps())
            bases.append(projection.basis.clone())
            torch.testing.assert_close(bases[-1].T @ bases[-1], torch.eye(3).double())
        assert (bases[0] - bases[1]).abs().max() > 0.1
        loss.eval()(maps(), maps())
        assert torch.equal(projection.basis, bases[2])

    def test_redrawn_projection__goes_on_from_its_state(self):
        first, second = (RedrawnProjection(dim=3, num_channels=6) for _ in range(2))
        first.redraw()
        second.load_state_dict(first.state_dict())
        first.redraw()
        second.redraw()
        assert torch.equal(first.basis, second.basis)

    def test_several_projections__mean_of_the_losses(self):
        options = dict(student_channels=6, teacher_channels=6, num_levels=1, normalize=None)
        student, teacher = maps(), [2 * maps()[0] + 1]
        several = RdimKDLoss([SeveralRandomProjections(2, 6)], **options)
        single = [
            RdimKDLoss([RandomProjection(2, 6, seed=seed)], **options)(student, teacher)
            for seed in range(3)
        ]
        expected = sum(it['loss_rdimkd_0'] for it in single) / 3
        torch.testing.assert_close(several(student, teacher)['loss_rdimkd_0'], expected)

    def test_partly_whitened__power_0_is_standardised_rdimkd(self):
        student, teacher = maps(), [maps()[0].flip(1) * torch.arange(1, 7)[:, None, None]]
        loss = build_loss(
            type='PartlyWhitenedLoss', projection=dict(type='IdentityProjection'), power=0.0
        )
        expected = standardized_loss(student[0].flatten(2), teacher[0].flatten(2))
        torch.testing.assert_close(loss(student, teacher)['loss_rdimkd_0'], expected)

    def test_partly_whitened__power_1_weighs_by_the_variance(self):
        loss = build_loss(
            type='PartlyWhitenedLoss',
            projection=dict(type='IdentityProjection'),
            power=1.0,
            student_channels=2,
            teacher_channels=2,
        )
        signal = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        teacher = torch.stack([3 * signal, signal]).view(1, 2, 2, 2)  # variances 9 and 1
        student = torch.stack([signal, -signal]).view(1, 2, 2, 2)  # correlations 1 and -1
        value = loss([student], [teacher])['loss_rdimkd_0'].item()
        assert value == pytest.approx((9 * 0 + 1 * 4) / (9 + 1), rel=1e-4)


class TestRuns:
    def test_run__digest_tells_what_decides_the_result(self, plan):
        def digest(plan, name='rdimkd_p', seed=0):
            return plan.run(TABLE[name], seed).digest

        elsewhere = replace(plan, work_dir=plan.work_dir / 'x', data=plan.data / 'y')
        assert digest(plan) == digest(elsewhere)
        others = [
            digest(plan, seed=1),
            digest(plan, 'rdimkd_p_w3'),
            digest(plan, 'rdimkd_wrong_input'),
            digest(plan, 'rdimkd_random_teacher'),
            digest(replace(plan, epochs=1)),
            digest(replace(plan, images=DigitsOptions(num_train=50))),
        ]
        assert len({digest(plan), *others}) == 7

    def test_open_runs__teacher_first_and_once(self, plan):
        experiments = select(['rdimkd_p', 'pkd', 'plain'])
        names = [(run.kind, run.seed) for run in open_runs(plan, experiments, [0, 1])]
        students = [(it.name, seed) for seed in (0, 1) for it in experiments]
        assert names == [('teacher_fcos', 0), *students]

    def test_open_runs__a_teacher_has_a_seed_of_its_own(self, plan):
        experiments = select(['teacher_fcos_seed1', 'rdimkd_p_teacher1'])
        names = [(run.kind, run.seed) for run in open_runs(plan, experiments, [0, 2])]
        students = [('rdimkd_p_teacher1', 0), ('rdimkd_p_teacher1', 2)]
        assert names == [('teacher_fcos_seed1', 1), *students]
        other, usual = (plan.run(TABLE[name], 0) for name in ('rdimkd_p_teacher1', 'rdimkd_p'))
        assert other.digest != usual.digest

    def test_open_runs__finished_ones_are_not_run_again_unless_a_setting_changed(
        self, plan, monkeypatch
    ):
        experiments = select(['plain'])
        (run,) = open_runs(plan, experiments, [0])
        finish(run)
        keep_finished(plan, [run])
        assert open_runs(plan, experiments, [0]) == []
        result = plan.result(run)
        assert (result['ap'], result['ap_by_epoch'][0], result['seed']) == (0.5, 0.125, 0)
        command = 'python tools/run_experiments.py plain --seeds 0 --data-set digits'
        assert result['command'] == command

        changed = replace(TABLE['plain'], changes={'optim_wrapper.optimizer.lr': 0.1})
        (again,) = open_runs(plan, [changed], [0])
        assert again.work_dir != run.work_dir
        assert plan.result(again) == {}

    def test_keep_finished__a_lost_result_comes_back_without_training(self, plan):
        (run,) = open_runs(plan, select(['plain']), [2])
        keep_finished(plan, [run])
        assert not plan.result_file(run).exists()
        finish(run, ap=0.25)
        keep_finished(plan, [run])
        assert plan.result(run)['ap'] == 0.25

    def test_keep_finished__killed_while_writing_leaves_nothing(self, plan, monkeypatch):
        (run,) = open_runs(plan, select(['plain']), [0])
        finish(run)

        def killed(number):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, 'fsync', killed)
        with pytest.raises(KeyboardInterrupt):
            keep_finished(plan, [run])
        assert list(plan.result_file(run).parent.iterdir()) == []
        assert plan.result(run) == {}

    def test_keep_finished__says_which_teacher(self, plan):
        (teacher, run) = open_runs(plan, select(['rdimkd_p']), [0])
        finish(teacher, ap=0.625)
        finish(run)
        keep_finished(plan, [run])
        assert plan.result(run)['teacher'] == {
            'experiment': 'teacher_fcos',
            'ap': 0.625,
            'sha256': '9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c',
        }

    def test_write_config__the_file_is_the_table_s_config(self, plan):
        for name in ('rdimkd_r_redrawn', 'rdimkd_equal', 'plain_8e'):
            run = plan.run(TABLE[name], 0)
            write_config(TABLE[name], run)
            written, expected = Config.fromfile(run.config), full_config(TABLE[name])
            assert written.to_dict() == expected.to_dict()


def outcomes_of(scores, plan):
    """Return outcomes with the given AP (name to seed to AP), and none for other experiments."""
    outcomes = collect(plan, [0])
    for name, by_seed in scores.items():
        results = {
            seed: {
                'title': TABLE[name].title,
                'seed': seed,
                'ap': ap,
                'ap50': ap + 0.2,
                'ap75': ap + 0.1,
                'ap_by_epoch': [ap / 2, ap],
                'epochs': 4,
                'date': f'2026-11-2{seed}T12:00:00+00:00',
                'machine': {'processor': 'P', 'cores': 2, 'torch': '2.13.0', 'mmdet': '3.3.0'},
                'teacher': {'experiment': 'teacher_fcos', 'sha256': f'{seed}'},
            }
            for seed, ap in by_seed.items()
        }
        outcomes[name] = Outcome(TABLE[name], results)
    return outcomes


class TestSummary:
    def test_mean_and_error__literal_values(self):
        assert mean_and_error([0.582, 0.597, 0.595]) == (
            pytest.approx(0.591333, abs=1e-6),
            pytest.approx(0.004702, abs=1e-6),
        )
        assert mean_and_error([0.5]) == (0.5, None)
        assert mean_and_error([]) == (None, None)

    def test_difference__of_common_seeds(self, plan):
        outcomes = outcomes_of({'plain': {0: 0.4, 2: 0.5}, 'pkd': {0: 0.55, 1: 0.9}}, plan)
        assert difference(outcomes['pkd'], outcomes['plain']) == [pytest.approx(0.15)]

    def test_markdown_table__dashes_where_nobody_ran(self, plan):
        scores = {
            'plain': {0: 0.4, 1: 0.5},
            'rdimkd_p': {0: 0.55, 1: 0.61},
            'pkd': {1: 0.58},
        }
        table = markdown_table(select(['main']), outcomes_of(scores, plan), [0, 1, 2])
        rows = table.splitlines()
        columns = ['', 'seed 0', 'seed 1', 'seed 2', 'mean', 'AP50', 'AP75']
        assert rows[0] == '| ' + ' | '.join([*columns, 'over plain', 'over PKD']) + ' |'
        cells = {row.split('`')[1]: row.split('| ', 2)[2] for row in rows[2:]}
        assert cells['rdimkd_p'] == (
            '0.550 | 0.610 | - | 0.580 ± 0.030 | 0.780 | 0.680 | 0.130 ± 0.020 | 0.030 |'
        )
        assert cells['plain'].endswith('| 0.450 ± 0.050 | 0.650 | 0.550 | - | -0.080 |')
        assert cells['rdimkd_a'] == '- | - | - | - | - | - | - | - |'

    def test_markdown_report__says_what_is_incomplete_and_who_taught(self, plan):
        report = markdown_report(STUDY, outcomes_of({'pkd': {0: 0.5, 1: 0.6}}, plan), [0, 1])
        assert (
            '`tools/run_experiments.py main --data-set digits`: 2 of 10 runs done. '
            'Not run: `plain`, `rdimkd_p`, `rdimkd_r`, `rdimkd_a`.'
        ) in report
        assert report.count('(`pkd`)') == 1
        assert '2026-11-20 to 2026-11-21' in report
        assert 'teacher_fcos had 2 different trainings' in report

    def test_insert_report__replaces_what_is_between_the_markers(self):
        begin, end = (
            '<!-- results on digits: begin -->',
            '<!-- results on digits: end -->',
        )
        document = f'before\n{begin}\nold\n{end}\nafter\n'
        once = insert_report(document, 'new', 'digits')
        assert once == f'before\n{begin}\n\nnew\n\n{end}\nafter\n'
        assert insert_report(once, 'new', 'digits') == once
        with pytest.raises(ConfigError, match='needs the lines'):
            insert_report('no markers', 'new', 'digits')

    def test_draw__with_and_without_results(self, plan, tmp_path):
        for scores in ({}, {'plain': {0: 0.4}, 'rdimkd_p': {0: 0.5, 1: 0.6}}):
            draw(outcomes_of(scores, plan), tmp_path / 'results.svg')
            assert '<svg' in (tmp_path / 'results.svg').read_text()


class TestTool:
    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (['rdimkd_q'], 'rdimkd_q is neither'),
            (['--seeds', '1', '1'], '--seeds must be different'),
            (['--jobs', '0'], '--jobs must be 1 or more'),
        ],
    )
    def test_mistake__one_line_and_status_2(self, capsys, arguments, message):
        with pytest.raises(SystemExit) as error:
            call_tool('run_experiments.py', *arguments)
        assert error.value.code == 2
        assert message in capsys.readouterr().err

    def test_list__shows_every_experiment(self, capsys, monkeypatch):
        monkeypatch.setenv('COLUMNS', '200')
        call_tool('run_experiments.py', '--list')
        output = capsys.readouterr().out
        assert all(f' {name} ' in output for name in TABLE.keys() - TEACHERS.keys())

    @pytest.mark.slow
    def test_run__trains_teacher_and_student_and_does_nothing_twice(self, tmp_path, capsys):
        arguments = ['rdimkd_r_d8', '--smoke', '--seeds', '0', '--jobs', '1', '--work-dir']
        call_tool('run_experiments.py', *arguments, tmp_path)
        assert '2 trainings to do' in capsys.readouterr().out
        result_file = tmp_path / 'results' / 'rdimkd_r_d8' / 'seed0.json'
        result = json.loads(result_file.read_text())
        assert 0 <= result['ap'] <= result['ap50'] <= 1
        assert result['epochs'] == len(result['ap_by_epoch']) == 1
        (run_dir,) = (tmp_path / 'rdimkd_r_d8').iterdir()
        kept = {path.name for path in run_dir.iterdir()}
        assert {'train.log', 'rdimkd_r_d8.py', 'epoch_1.pth'} <= kept
        trained = (run_dir / 'epoch_1.pth').stat().st_mtime_ns

        result_file.unlink()
        call_tool('run_experiments.py', *arguments, tmp_path)
        assert 'to do' not in capsys.readouterr().out
        assert (
            json.loads(result_file.read_text())['checkpoint_sha256']
            == (result['checkpoint_sha256'])
        )
        assert (run_dir / 'epoch_1.pth').stat().st_mtime_ns == trained
