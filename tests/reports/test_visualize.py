import base64
import re
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from browser import look_at, needs_chromium
from mmcv.transforms import Compose
from mmdet.apis import inference_detector, init_detector
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from runs import (
    CLASSES,
    call_tool,
    distilled,
    fcos,
    load,
    run_config,
    train,
    write_data,
    write_teacher,
)

from rdimkd_det import RdimKDLoss
from rdimkd_det.distiller.inference import trained_detector, trained_student
from rdimkd_det.reports.pictures.drawing import drawable, render
from rdimkd_det.reports.pictures.views import ImageView, Viewer, principal_axes, view_level


def make_loss(**options):
    options = {
        'projection': dict(type='RandomProjection', dim=4),
        'student_channels': 6,
        'teacher_channels': 6,
        'num_levels': 1,
        **options,
    }
    return RdimKDLoss(**options)


class TestViewLevel:
    def test_view_level__equals_numpy(self):
        loss = make_loss()
        student, teacher = torch.randn(2, 1, 6, 5, 7).unbind()
        student = student + teacher
        view = view_level(loss, 0, {'distilled': student}, teacher)
        basis = loss.projections[0].basis.numpy()
        s, t = (basis.T @ maps[0].flatten(1).numpy() for maps in (student, teacher))
        axes = np.linalg.svd(t - t.mean(1, keepdims=True))[0][:, :3]

        def standardized(x):
            return (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)

        difference = np.sqrt(((standardized(s) - standardized(t)) ** 2).mean(0)).reshape(5, 7)
        np.testing.assert_allclose(view.students['distilled'].difference, difference, atol=1e-4)
        for shown, coordinates in ((view.teacher, t), (view.students['distilled'].colours, s)):
            expected = standardized(axes.T @ coordinates).T.reshape(5, 7, 3) / 4
            for channel in range(3):  # the sign of an axis is free
                own, other = shown[..., channel] - 0.5, expected[..., channel].clip(-0.5, 0.5)
                sign = np.sign((own * other).sum())
                np.testing.assert_allclose(own, sign * other, atol=1e-4)

    def test_view_level__the_teacher_itself_and_a_stranger(self):
        teacher, stranger = torch.randn(2, 1, 6, 30, 40).unbind()
        view = view_level(make_loss(), 0, {'same': 3 * teacher + 1, 'other': stranger}, teacher)
        same, other = view.students['same'], view.students['other']
        np.testing.assert_allclose(same.colours, view.teacher, atol=1e-3)
        assert same.difference.max() < 1e-2
        assert same.explained == pytest.approx(1, abs=1e-4)
        assert np.sqrt((other.difference**2).mean()) == pytest.approx(np.sqrt(2), abs=0.05)
        assert other.explained < 0.01

    @pytest.mark.parametrize('dim, size', [(2, (3, 4)), (4, (1, 1))])
    def test_view_level__few_directions_or_positions(self, dim, size):
        loss = make_loss(projection=dict(type='RandomProjection', dim=dim))
        view = view_level(loss, 0, {'a': torch.randn(1, 6, *size)}, torch.randn(1, 6, *size))
        assert view.teacher.shape == (*size, 3)
        assert np.isfinite(view.students['a'].difference).all()
        assert (view.students['a'].explained is None) == (size == (1, 1))

    def test_view_level__a_constant_teacher_has_no_share(self):
        constant = torch.randn(1, 6, 1, 1).expand(1, 6, 3, 4)
        view = view_level(make_loss(), 0, {'a': torch.randn(1, 6, 3, 4)}, constant)
        assert view.students['a'].explained is None

    def test_principal_axes__the_largest_first(self):
        coordinates = torch.randn(3, 500) * torch.tensor([1.0, 10.0, 3.0])[:, None] + 50
        leading = principal_axes(coordinates).abs().argmax(0)
        assert leading.tolist() == [1, 2, 0]


class TestDrawing:
    @pytest.mark.parametrize('named', [True, False])
    def test_render__names_that_the_font_lacks_or_takes_for_formulas(self, named):
        image = np.zeros((30, 40, 3), np.uint8)
        detections = {'distilled': [((5, 5, 20, 20), '汉 $x', 0.5)]}
        view = ImageView(Path('图 a$_b$.png'), image, detections=detections)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert render([view], named).startswith(b'\x89PNG')

    def test_drawable__literal(self):
        assert drawable('图ä $1.png') == r'?ä \$1.png'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return a folder with a distilled and a plain training of FCOS, and their config files."""
    root = tmp_path_factory.mktemp('visualize')
    data = write_data(root / 'data')
    teacher = write_teacher(root / 'teacher', fpn_channels=16)
    for name, model in (('rdimkd', distilled(fcos(), teacher)), ('plain', fcos())):
        cfg = run_config(data, root / name, model, max_epochs=1)
        train(cfg)
        cfg.dump(str(root / f'{name}.py'))
    cv2.imwrite(str(root / 'flat.png'), np.zeros((1, 3000, 3), np.uint8))
    return root


def arguments(root, *images):
    return root / 'rdimkd.py', root / 'rdimkd' / 'epoch_1.pth', *images


def make_viewer(trained, teacher=None, score_threshold=0.0):
    cfg = Config.fromfile(trained / 'rdimkd.py')
    if teacher is not None:
        cfg.model.teacher.checkpoint = str(teacher)
    student = trained_student(cfg.model, str(trained / 'rdimkd' / 'epoch_1.pth'), 'student')
    plain = trained_detector(cfg.model, str(trained / 'plain' / 'epoch_1.pth'), 'plain')
    return Viewer(student, plain, Compose(get_test_pipeline_cfg(cfg)), score_threshold)


class TestViewer:
    @pytest.mark.slow
    def test_viewer__detects_what_mmdet_detects(self, trained):
        image = trained / 'data' / 'images' / '0.png'
        view = make_viewer(trained)(image)
        assert list(view.detections) == ['teacher', 'distilled', 'plain']
        config = str(trained / 'plain.py')  # of all students
        for name, folder in (('distilled', 'rdimkd'), ('plain', 'plain')):
            checkpoint = str(trained / folder / 'epoch_1.pth')
            detector = init_detector(config, checkpoint, palette='random', device='cpu')
            expected = inference_detector(detector, str(image)).pred_instances
            boxes, names, scores = zip(*view.detections[name])
            np.testing.assert_allclose(boxes, expected.bboxes, rtol=1e-5)
            np.testing.assert_allclose(scores, expected.scores, rtol=1e-5)
            assert list(names) == [CLASSES[label] for label in expected.labels]

    @pytest.mark.slow
    def test_viewer__teacher_without_a_head(self, trained, tmp_path):
        checkpoint = load(trained / 'teacher' / 'teacher.pth')
        weights = checkpoint['state_dict']
        headless = {key: it for key, it in weights.items() if not key.startswith('bbox_head')}
        torch.save({**checkpoint, 'state_dict': headless}, tmp_path / 'headless.pth')
        view = make_viewer(trained, tmp_path / 'headless.pth')(trained / 'data/images/0.png')
        assert list(view.detections) == ['distilled', 'plain']
        assert [level.name for level in view.levels] == ['neck_s8', 'neck_s16', 'neck_s32']

    @pytest.mark.slow
    def test_viewer__shows_the_maps_of_the_image_without_padding(self, trained):
        view = make_viewer(trained)(trained / 'data' / 'images' / '0.png')
        # 64x80 pixels, padded to 64x96.
        assert [level.teacher.shape[:2] for level in view.levels] == [(8, 10), (4, 5), (2, 3)]


class TestVisualizeTool:
    @pytest.mark.slow
    def test_visualize__png_of_two_images(self, trained, tmp_path):
        images = [trained / 'data' / 'images' / f'{number}.png' for number in range(2)]
        out = tmp_path / 'new' / 'features.png'
        plain = trained / 'plain' / 'epoch_1.pth'
        call_tool('visualize.py', *arguments(trained, *images), '--plain', plain, '--out', out)
        height, width = cv2.imread(str(out)).shape[:2]
        assert width == 5 * 210  # teacher, and two students with their differences
        assert height == 2 * 4 * 210  # image and three levels, twice

    @pytest.mark.slow
    def test_visualize__of_a_training_from_a_cache_shows_the_teacher_itself(
        self, trained, tmp_path
    ):
        cfg = Config.fromfile(trained / 'rdimkd.py')
        cfg.model.teacher.cache = 'moved/away'
        cfg.dump(tmp_path / 'cached.py')
        config, *seen = arguments(trained, trained / 'data' / 'images' / '0.png')
        for name, path in (('live', config), ('cached', tmp_path / 'cached.py')):
            call_tool('visualize.py', path, *seen, '--out', tmp_path / f'{name}.png')
        assert (tmp_path / 'live.png').read_bytes() == (tmp_path / 'cached.png').read_bytes()

    @pytest.mark.slow
    @needs_chromium
    def test_visualize__html_of_one_image_in_a_browser(self, trained, tmp_path):
        image = trained / 'data' / 'images' / '0.png'
        out = tmp_path / 'features.html'
        call_tool('visualize.py', *arguments(trained, image), '--out', out, '--score-thr', 0)
        html = out.read_text()
        (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
        shape = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), 1).shape
        assert shape[1] == 3 * 210
        seen = look_at(html, tmp_path)
        assert (seen['width'] <= 360, seen['loaded'], seen['broken']) == (True, [], 0)

    def test_visualize__with_the_pipeline_of_val_where_there_is_no_test(
        self, trained, tmp_path, capsys
    ):
        config, *seen = arguments(trained, trained / 'data' / 'images' / '0.png')
        cfg = Config.fromfile(config)
        cfg.update(test_dataloader=None, test_cfg=None, test_evaluator=None)
        cfg.dump(tmp_path / 'no_test.py')
        call_tool('visualize.py', tmp_path / 'no_test.py', *seen, '--out', tmp_path / 'f.png')
        assert (tmp_path / 'f.png').is_file()
        cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
        cfg.dump(tmp_path / 'no_val.py')
        with pytest.raises(SystemExit) as status:
            call_tool('visualize.py', tmp_path / 'no_val.py', *seen, '--out', tmp_path / 'g.png')
        assert status.value.code == 2
        assert 'has neither test_dataloader nor val_dataloader' in capsys.readouterr().err

    @pytest.mark.slow
    def test_visualize__misspelled_transform(self, trained, tmp_path, capsys):
        config, *seen = arguments(trained, trained / 'data' / 'images' / '0.png')
        cfg = Config.fromfile(config)
        cfg.test_dataloader.dataset.pipeline[1].type = 'Resiz'
        cfg.dump(tmp_path / 'misspelled.py')
        with pytest.raises(SystemExit, match='2'):
            call_tool(
                'visualize.py', tmp_path / 'misspelled.py', *seen, '--out', tmp_path / 'f.png'
            )
        error = capsys.readouterr().err
        assert error.count('\n') == 1 and 'Resiz' in error

    @pytest.mark.slow
    @pytest.mark.parametrize(
        'change, message',
        [
            (dict(checkpoint='plain/epoch_1.pth'), "has no entry 'distill'"),
            (dict(checkpoint='teacher/teacher.pth'), 'does not match this config'),
            (dict(checkpoint='none.pth'), 'none.pth does not exist'),
            (dict(config='plain.py'), 'the model is a plain FCOS'),
            (dict(image='plain.py'), 'cannot be read as an image'),
            (dict(image='none.png'), 'none.png not found'),
            (dict(image='flat.png'), 'flat.png: the test pipeline does not take it: '),
            (dict(out='features.jpg'), 'must be a .png or .html file'),
        ],
    )
    def test_visualize__mistakes(self, trained, tmp_path, capsys, change, message):
        config, checkpoint, image = arguments(trained, trained / 'data' / 'images' / '0.png')
        paths = dict(config=config, checkpoint=checkpoint, image=image, out=tmp_path / 'f.png')
        paths.update({name: trained / path for name, path in change.items()})
        *given, out = paths.values()
        with pytest.raises(SystemExit) as status:
            call_tool('visualize.py', *given, '--out', out)
        assert status.value.code == 2
        error = capsys.readouterr().err
        assert error.count('\n') == 1
        assert message in error
        assert not out.exists()
