import errno
import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from browser import look_at, needs_chromium, screenshot
from mmdet.registry import MODELS
from mmengine.config import Config
from rich.console import Console
from runs import call_tool, distilled, fcos, hidden, run_config, train, write_data, write_teacher

from rdimkd_det import ConfigError
from rdimkd_det.files.atomic import read_json
from rdimkd_det.files.scalars import History
from rdimkd_det.reports import evaluation
from rdimkd_det.reports.charts import draw_lines
from rdimkd_det.reports.comparison import (
    classes_table,
    comparison_page,
    scores_table,
    training_charts,
)
from rdimkd_det.reports.config_diff import differing_settings, flatten
from rdimkd_det.reports.detections import Detection, Example, iou, match, most_different
from rdimkd_det.reports.evaluation import Evaluation
from rdimkd_det.reports.gallery import draw_example, embed, gallery, legend
from rdimkd_det.reports.labels import place_labels
from rdimkd_det.reports.page import page, table
from rdimkd_det.reports.runs import TrainedRun, read_runs

CONSOLE = Console(quiet=True)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return a folder with the work directories of a plain and a distilled training."""
    root = tmp_path_factory.mktemp('report')
    data, teacher = write_data(root / 'data'), write_teacher(root / 'teacher')
    models = {'plain': fcos(), 'rdimkd': distilled(fcos(), teacher)}
    for name, model in models.items():
        cfg = run_config(data, root / name, model, **{'train_cfg.val_interval': 1})
        if name == 'rdimkd':
            cfg.custom_hooks[0].monitor_interval = 1
        train(cfg)
    return root


def references(html):
    found = re.findall(r'(?:src|href)\s*=\s*"?([^"\s>]+)', html)
    return found + re.findall(r'url\(([^)]*)\)', html)


class TestReportTool:
    @pytest.mark.slow
    def test_report__of_two_runs(self, trained, tmp_path):
        out = tmp_path / 'new' / 'report.html'
        call_tool('report.py', trained / 'plain', trained / 'rdimkd', '--out', out)
        html = out.read_text()
        assert '<h1>plain and rdimkd</h1>' in html
        assert 'over plain' in html
        for name in ('red', 'green', 'blue', 'distillation.losses.neck.projection.dim', 'neck_s16'):
            assert name in html
        assert 'variance explained in the subspace' in html
        assert 'model.backbone' not in html  # equal, whether distilled or not
        assert html.count('<svg class="boxes') == 3 * 6  # truth and two runs of six images
        assert references(html)
        assert all(it.startswith(('#', 'data:image/')) for it in references(html))
        assert '<script' not in html
        ids = re.findall(r' id="([^"]+)"', html)
        assert len(ids) == len(set(ids))

        kept = read_json(trained / 'plain' / evaluation.CACHE)
        assert set(kept['classes']) == {'red', 'green', 'blue'}
        assert set(kept['detections']) == {str(number) for number in range(8)}

    @pytest.mark.slow
    def test_evaluate__is_what_the_run_itself_found_and_is_done_once(self, trained, monkeypatch):
        (run,) = read_runs([trained / 'rdimkd'])
        (trained / 'rdimkd' / evaluation.CACHE).unlink(missing_ok=True)
        found = evaluation.evaluate(run, CONSOLE)
        logged = run.history.metrics(2)
        assert found.scores['AP'] == pytest.approx(logged['ap'])
        assert found.scores['AP50'] == pytest.approx(logged['ap50'])
        monkeypatch.setattr(evaluation, '_test', None)
        assert evaluation.evaluate(run, CONSOLE) == found
        annotations = trained / 'data' / 'annotations.json'
        content = annotations.read_text()
        try:
            annotations.write_text(content + '\n')
            with pytest.raises(ConfigError, match='not callable'):
                evaluation.evaluate(run, CONSOLE)
        finally:
            annotations.write_text(content)
        assert evaluation.evaluate(run, CONSOLE) == found
        run.checkpoint.touch()
        with pytest.raises(ConfigError, match='not callable'):
            evaluation.evaluate(run, CONSOLE)

    def test_evaluate__in_a_directory_that_cannot_be_written(self, trained, tmp_path, monkeypatch):
        copy = shutil.copytree(trained / 'plain', tmp_path / 'copy')
        (copy / evaluation.CACHE).unlink(missing_ok=True)

        def refuse(path, content):
            raise PermissionError(errno.EACCES, 'Permission denied', str(path))

        monkeypatch.setattr(evaluation, 'write_json', refuse)
        (run,) = read_runs([copy])
        assert set(evaluation.evaluate(run, CONSOLE).classes) == {'red', 'green', 'blue'}

    def test_report__of_an_iteration_based_loop(self, tmp_path, capsys):
        cfg = run_config(write_data(tmp_path / 'data'), tmp_path / 'run', fcos())
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=1)
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
        cfg.log_processor = dict(by_epoch=False)
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=1)
        train(cfg)
        (run,) = read_runs([tmp_path / 'run'])
        assert sorted(run.history.val) == [1, 2]
        call_tool('report.py', tmp_path / 'run', '--no-eval', '--out', tmp_path / 'report.html')
        html = (tmp_path / 'report.html').read_text()
        assert '<td>iteration 2</td>' in html and 'AP at each validation' in html

    def test_evaluate__nothing_detected_is_zero_where_there_are_objects(self, tmp_path):
        data = write_data(tmp_path / 'data')  # of 33 x 29 pixels at most, which is small
        content = json.loads((data / 'annotations.json').read_text())
        content['annotations'] = [it for it in content['annotations'] if it['category_id'] < 2]
        (data / 'annotations.json').write_text(json.dumps(content))
        model = fcos()
        model.test_cfg.score_thr = 2.0
        cfg = run_config(data, tmp_path, model)
        checkpoint = tmp_path / 'epoch_1.pth'
        torch.save({'state_dict': MODELS.build(model).state_dict()}, checkpoint)
        found = evaluation.evaluate(TrainedRun('a', tmp_path, cfg, History(), checkpoint), CONSOLE)
        assert found.scores == {'AP': 0, 'AP50': 0, 'AP75': 0, 'small': 0}
        assert found.classes == {'red': 0, 'green': 0}
        assert found.detections == {str(number): [] for number in range(8)}

    @pytest.mark.slow
    def test_report__without_val_data_says_so(self, trained, tmp_path, capsys):
        out = tmp_path / 'report.html'
        annotations = trained / 'data' / 'annotations.json'
        for cache in trained.glob(f'*/{evaluation.CACHE}'):
            cache.unlink()
        annotations.rename(trained / 'hidden')
        try:
            call_tool('report.py', trained / 'plain', '--out', out)
        finally:
            (trained / 'hidden').rename(annotations)
        assert 'No AP by class or size of plain: val data' in capsys.readouterr().err
        assert 'No AP by class or size of plain: val data' in out.read_text()

    def test_report__val_data_that_are_gone_leave_what_was_found_before(
        self, trained, tmp_path, capsys
    ):
        work_dirs, out = [trained / 'plain', trained / 'rdimkd'], tmp_path / 'report.html'
        for run in read_runs(work_dirs):
            evaluation.evaluate(run, CONSOLE)
        with hidden(str(trained / 'data')):
            call_tool('report.py', *work_dirs, '--out', out)
        assert 'No images: val data: ' in capsys.readouterr().err
        assert 'AP by class' in out.read_text()

    def test_read_runs__the_settings_are_those_of_the_training(self, tmp_path):
        for part, settings, logged in (
            ('1', dict(lr=1, load_from='coco.pth', resume=False), {'step': 5, 'loss': 1.0}),
            ('2', dict(lr=2, load_from='epoch_1.pth', resume=True), {'step': 9, 'loss': 1.0}),
            ('3', dict(lr=3, load_from='epoch_2.pth', resume=False), {'step': 0, 'coco/AP': 0.1}),
        ):
            folder = tmp_path / part / 'vis_data'
            folder.mkdir(parents=True)
            Config(settings).dump(folder / 'config.py')
            (folder / 'scalars.json').write_text(json.dumps(logged))
        (run,) = read_runs([tmp_path])
        assert run.config.to_dict() == dict(lr=2, load_from='coco.pth', resume=False)

    def test_find_examples__only_of_the_same_val_data(self, tmp_path):
        def run(name, classes=('red', 'green', 'blue'), **data):
            folder = write_data(tmp_path / name, **data)
            file = folder / 'annotations.json'
            content = json.loads(file.read_text())
            content['categories'] = [dict(id=n, name=it) for n, it in enumerate(classes)]
            file.write_text(json.dumps(content))
            cfg = run_config(folder, tmp_path, fcos())
            for loader in (cfg.train_dataloader, cfg.val_dataloader):
                loader.dataset.metainfo.classes = classes
            return TrainedRun(name, tmp_path, cfg, History(), None)

        def detected(label):
            return Evaluation({}, {}, {'0': [[1, 2, 30, 40, label, 0.9]]})

        one, copy = run('one'), run('copy')
        evaluations = {'one': detected(0), 'copy': detected(2)}
        first, *others = evaluation.find_examples([one, copy], evaluations)
        assert len(others) == 7
        assert [first.found[name][0].name for name in ('one', 'copy')] == ['red', 'blue']
        assert first.path == tmp_path / 'one/images/0.png'
        for other in (
            run('resized', size=(64, 96)),
            run('renamed', ('x', 'red', 'green', 'blue')),
            run('longer', num_images=9),
        ):
            evaluations[other.name] = detected(2)
            assert evaluation.find_examples([one, other], evaluations) == []

    def test_report__damaged_val_data_leave_the_curves(self, trained, tmp_path, capsys):
        annotations, whole = trained / 'data' / 'annotations.json', tmp_path / 'whole.json'
        (trained / 'plain' / evaluation.CACHE).unlink(missing_ok=True)
        shutil.copy(annotations, whole)
        annotations.write_text(whole.read_text()[:500])
        try:
            call_tool('report.py', trained / 'plain', '--out', tmp_path / 'report.html')
        finally:
            shutil.copy(whole, annotations)
        reason = f'No AP by class or size of plain: annotations {annotations} are cut off'
        assert reason in capsys.readouterr().err
        assert 'AP at each validation' in (tmp_path / 'report.html').read_text()

    @pytest.mark.slow
    @needs_chromium
    @pytest.mark.parametrize('dark', [False, True])
    def test_report__in_a_browser_on_a_phone(self, trained, tmp_path, dark):
        out = tmp_path / 'report.html'
        call_tool('report.py', trained / 'plain', trained / 'rdimkd', '--out', out)
        seen = look_at(out.read_text(), tmp_path, width=360, dark=dark)
        assert seen['width'] <= 360
        assert seen['loaded'] == []
        assert seen['broken'] == 0
        assert seen['background'] == ('rgb(20, 23, 30)' if dark else 'rgb(255, 255, 255)')

    def test_report__no_training(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as status:
            call_tool('report.py', tmp_path, '--out', tmp_path / 'report.html')
        assert status.value.code == 2
        error = capsys.readouterr().err
        assert error.count('\n') == 1
        assert f'{tmp_path} holds no training' in error
        assert not (tmp_path / 'report.html').exists()

    def test_report__no_directory(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as status:
            call_tool('report.py', tmp_path / 'nope', '--out', tmp_path / 'report.html')
        assert status.value.code == 2
        error = f'report.py: work directory {tmp_path / "nope"} does not exist.\n'
        assert capsys.readouterr().err == error

    @pytest.mark.slow
    def test_report__damaged_checkpoints(self, trained, tmp_path, capsys):
        copy = tmp_path / 'cut'
        shutil.copytree(trained / 'plain', copy)
        (copy / 'last_checkpoint').unlink()
        for path in copy.glob('*.pth'):
            path.write_bytes(path.read_bytes()[:1000])
        call_tool('report.py', copy, '--out', tmp_path / 'report.html')
        assert 'No AP by class or size of cut: no whole checkpoint' in capsys.readouterr().err
        assert 'AP at each validation' in (tmp_path / 'report.html').read_text()

    def test_report__one_directory_twice(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            call_tool('report.py', tmp_path, tmp_path)
        assert 'given twice' in capsys.readouterr().err

    @pytest.mark.parametrize(
        'config, message',
        [
            (dict(), 'has no val_dataloader'),
            (
                dict(val_dataloader=dict(dataset={}), val_evaluator=[dict(type='VOCMetric')]),
                'no Coco',
            ),
        ],
    )
    def test_evaluate__nothing_to_evaluate(self, tmp_path, config, message):
        checkpoint = tmp_path / 'epoch_1.pth'
        checkpoint.touch()
        run = TrainedRun('a', tmp_path, Config(config), History(), checkpoint)
        with pytest.raises(ConfigError, match=message):
            evaluation.evaluate(run, CONSOLE)


class TestConfigDiff:
    def test_differing_settings__distilled_and_plain_differ_in_distillation_alone(self):
        student = dict(type='FCOS', neck=dict(out_channels=[1, 2]))
        model = dict(type='RdimKDDistiller', student=student, losses=dict(neck=dict(dim=8)))
        configs = [
            Config(dict(model=student, lr=0.1, work_dir='a')),
            Config(dict(model=model, lr=0.2, work_dir='b')),
        ]
        assert differing_settings(configs) == {
            'distillation.losses.neck.dim': ['not set', '8'],
            'distillation.type': ['not set', "'RdimKDDistiller'"],
            'lr': ['0.1', '0.2'],
        }

    def test_flatten__lists_of_dicts_by_index_others_whole(self):
        tree = {'pipeline': [{'type': 'A'}, {'type': 'B', 'size': (1, 2)}], 'empty': {}}
        assert flatten(tree) == {
            'pipeline.0.type': "'A'",
            'pipeline.1.type': "'B'",
            'pipeline.1.size': '[1, 2]',
            'empty': '{}',
        }


def make_run(name, val=()):
    history = History(train={5: {'loss': 1.0, 'lr': 0.1, 'step': 5}}, val=dict(val))
    return TrainedRun(name, None, Config(dict(model={}, lr=len(name))), history, None)


def make_taught(name, ap, teacher):
    run = make_run(name, {1: {'coco/bbox_mAP': ap}, 2: {'coco/bbox_mAP': ap}})
    run.config.model = dict(student=dict(type='FCOS'))
    run.history.teacher_aps = {'teacher_ap_a': 0.1, 'teacher_ap_b': teacher}
    return run


class TestComparison:
    def test_scores_table__gap_to_the_teacher(self):
        plain = make_run('plain', {1: {'coco/bbox_mAP': 0.3}})
        taught = make_taught('rdimkd', 0.375, 0.4)
        html = scores_table([taught, plain], {})
        assert '<th>teacher</th><th>gap closed</th>' in html
        assert '<td>0.400</td><td>75 %</td>' in html  # (0.375 - 0.3) / (0.4 - 0.3)
        assert html.count('<td>\u2013</td><td>\u2013</td></tr>') == 1  # of the plain run
        worse = scores_table([plain, make_taught('rdimkd', 0.28, 0.4)], {})
        assert '>\u221220 %</td>' in worse
        below = scores_table([plain, make_taught('rdimkd', 0.35, 0.2)], {})
        assert '<td>0.200</td><td>\u2013</td>' in below  # there is no gap to close
        alone = scores_table([taught], {})
        assert '<td>0.400</td><td>\u2013</td>' in alone
        assert 'gap closed' not in scores_table([plain], {})

    def test_training_charts__line_of_the_teacher(self):
        (svg, _), *_ = training_charts([make_taught('rdimkd', 0.375, 0.4)])
        assert 'teacher of rdimkd' in svg

    def test_scores_table__changes_over_the_first(self):
        runs = [make_run('plain', {1: {'coco/bbox_mAP': 0.3}}), make_run('rdimkd')]
        evaluations = {'rdimkd': Evaluation({'AP': 0.34, 'AP50': 0.5, 'small': 0.1}, {}, {})}
        html = scores_table(runs, evaluations)
        assert '<td>0.300</td>' in html
        assert '<td class="up">+0.040</td>' in html

    def test_scores_table__says_what_the_scores_are_of(self):
        logged, evaluated, iterations, nothing = (make_run(name, {8: {}}) for name in 'abcd')
        evaluated = replace(evaluated, checkpoint=Path('epoch_9.pth'))
        iterations.config.train_cfg = dict(type='mmengine.IterBasedTrainLoop')
        nothing.history.val.clear()
        runs = [logged, evaluated, iterations, nothing]
        html = scores_table(runs, {'b': Evaluation({'AP': 0.1}, {}, {})})
        cells = ['epoch 8', 'epoch 9', 'iteration 8', '\u2013']
        assert re.findall(r'<td>[a-d]</td><td>([^<]+)</td>', html) == cells

    def test_classes_table__greatest_change_first_and_the_rest_folded(self):
        base = {f'c{number:02}': 0.5 for number in range(12)}
        other = {**base, 'c07': 0.3, 'c03': 0.6}
        html = classes_table({'a': Evaluation({}, base, {}), 'b': Evaluation({}, other, {})})
        assert html.index('c07') < html.index('c03') < html.index('c00')
        assert '<td class="down">\u22120.200</td>' in html
        assert '2 more classes' in html

    def test_comparison_page__without_evaluation_or_second_run(self):
        html = comparison_page([make_run('<b>')], {}, [], ['No AP: <why>'], {'date': 'today'})
        assert '&lt;why&gt;' in html
        assert 'Where the configs differ' not in html
        assert '<b>' not in html

    def test_table__escapes_and_colours(self):
        html = table(('<',), [('+1',), ('\u22121',), ('<b>',)])
        assert '<th>&lt;</th>' in html
        assert re.findall(r'class="(up|down)"', html) == ['up', 'down']
        assert '&lt;b&gt;' in html


class TestDetections:
    def test_match__one_right_detection_per_object_and_class(self):
        truths = [Detection((0, 0, 10, 10), '3', 1.0)]
        found = [
            Detection((0, 0, 10, 9), '3', 0.5),
            Detection((0, 0, 10, 10), '3', 0.9),
            Detection((0, 0, 10, 10), '8', 0.8),
            Detection((0, 6, 10, 16), '3', 0.7),
        ]
        judged = match(found, truths)
        assert [(it.score, it.right) for it in judged] == [
            (0.9, True), (0.8, False), (0.7, False), (0.5, False)
        ]  # fmt: skip

    def test_iou__literal_values(self):
        assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
        assert iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0
        assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


class TestPage:
    def test_page__escapes_the_title(self):
        assert '<h1>a &lt; b</h1>' in page('a < b', [])

    @pytest.mark.slow
    @needs_chromium
    @pytest.mark.parametrize('columns, shadow', [(2, False), (30, True)])
    def test_table__a_shadow_where_it_goes_on(self, tmp_path, columns, shadow):
        html = page('', [table(['head'] * columns, [[''] * columns] * 20)])
        dark = screenshot(html, tmp_path)[:, 330:350].min((1, 2)) < 215
        assert dark.sum() > 200 if shadow else dark.sum() < 50  # the head's letters


class TestCharts:
    @pytest.mark.parametrize('steps, ticks', [([4], '4'), ([1, 2], '1 2')])
    def test_draw_lines__whole_numbers_along_x_from_zero_along_y(self, steps, ticks):
        svg = draw_lines('a', {'a': (steps, [2.0] * len(steps))}, 'x', 'y')
        texts = re.findall(r'<text [^>]*>([^<]+)</text>', svg)
        assert texts[: texts.index('x')] == ticks.split()
        assert '0.00' in texts

    def test_draw_lines__names_that_the_font_lacks_or_takes_for_formulas(self):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            svg = draw_lines('a', {'图 $x_1$': ([1, 2], [1, 2])}, 'x', 'y')
        assert '>图 $x_1$</text>' in svg

    def test_draw_lines__name_with_an_underscore_in_front(self):
        svg = draw_lines('a', {'_base': ([1, 2], [1, 2])}, 'x', 'y')
        assert '>\u200b_base</text>' in svg


class TestGallery:
    def test_draw_example__large_image_is_made_smaller_with_its_boxes(self, tmp_path):
        path = tmp_path / 'large.png'
        noise = np.random.RandomState(0).randint(255, size=(600, 1920, 3), dtype=np.uint8)
        cv2.imwrite(str(path), noise)
        assert path.stat().st_size > 3_000_000
        truth = Detection((960, 300, 1920, 600), 'a', 1.0)
        svg = draw_example(Example(path, (1920, 600), [truth], {}))
        assert 'viewBox="0 0 192 60"' in svg
        assert 'x="96.0" y="30.0" width="96.0" height="30.0"' in svg
        assert embed(path).startswith('data:image/jpeg;base64,')
        assert len(svg) < 300_000

    @pytest.mark.parametrize(
        'runs, wide, narrow', [(1, 2, 2), (2, 3, 3), (3, 4, 2), (4, 5, 3), (5, 3, 3), (9, 5, 3)]
    )
    def test_gallery__no_picture_alone_beside_a_large_blank(self, tmp_path, runs, wide, narrow):
        path = tmp_path / 'a.png'
        cv2.imwrite(str(path), np.zeros((9, 9, 3), np.uint8))
        names = {str(number): 'run' for number in range(runs)}
        html = gallery([Example(path, (9, 9), [], {key: [] for key in names})], names)
        assert f'style="--wide:{wide};--narrow:{narrow}"' in html

    def test_place_labels__none_hides_another(self):
        boxes = [(20, 20, 60, 60), (22, 20, 62, 60), (24, 22, 60, 62), (70, 0, 96, 30)]
        labels = place_labels(boxes, [40, 40, 36, 30], 8, (96, 96))
        assert labels == [
            (20, 12, False, True),  # above
            (22, 60, False, False),  # below: the first is above
            (24, 22, False, False),  # within: both others are taken
            (96, 30, True, False),  # below, and ending with its box: the image ends
        ]

    def test_place_labels__stay_within_the_image_if_they_can(self):
        assert place_labels([(60, 9, 96.001, 30)], [40], 8, (96, 96)) == [(96, 1, True, True)]
        assert place_labels([(20, 9, 30, 30)], [25], 8, (30, 30)) == [(30, 1, True, True)]
        assert place_labels([(2, 2, 9, 9)], [25], 8, (30, 9)) == [(2, 1, False, False)]
        crowd = place_labels([(0, 0, 9, 9)] * 5, [9] * 5, 8, (40, 40))
        assert len(crowd) == 5  # more than have room

    def test_most_different__over_all_detectors(self):
        truths = [Detection((0, 0, 9, 9), 'a', 1.0)]
        right = match([Detection((0, 0, 9, 9), 'a', 0.9)], truths)
        same = Example(None, (9, 9), truths, {'x': right, 'y': right, 'z': right})
        other = Example(None, (9, 9), truths, {'x': right, 'y': right, 'z': []})
        assert most_different([same, other], 1) == [other]
        assert legend([other, same], 'the runs').startswith('The val images on which the runs dif')
        assert legend([same], 'the runs').startswith('No val image sets the runs apart, by the F1')
        assert (same.difference, other.difference) == (0.0, 1.0)
