"""ONNX models that detect: the same detections as MMDetection's, and what is refused."""

import json
import re
import runpy
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import Compose
from runs import CLASSES, REPOSITORY, call_tool, fcos, run_config

from rdimkd_det import ConfigError
from rdimkd_det.export.recipe import input_recipe
from rdimkd_det.export.student import Student, generated_image

onnxruntime = pytest.importorskip('onnxruntime')
onnx = pytest.importorskip('onnx')

from rdimkd_det.export import end_to_end  # noqa: E402
from rdimkd_det.export.onnx import export_onnx  # noqa: E402

EXAMPLE = REPOSITORY / 'examples/detect_with_onnx.py'
LOADING = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_shape',)),
]


def confident(detector):
    """Spread the scores of a detector with random weights, so that they have an order."""
    detector.eval()
    with torch.no_grad():
        spread = torch.cat([maps.flatten() for maps in raw_scores(detector)]).std()
        for name, parameter in detector.bbox_head.named_parameters():
            if re.search(r'(conv|retina|atss|gfl|rtm)_cls(\.\d)?\.weight', name):
                parameter.mul_(2 / spread)
            elif re.search(r'(conv|retina|atss|gfl|rtm)_cls(\.\d)?\.bias', name):
                parameter.fill_(-2)
            elif re.search(r'rtm_reg(\.\d)?\.bias', name):  # else boxes are smaller than a pixel
                parameter.fill_(2)
    return detector


def raw_scores(detector):
    return detector(torch.randn(1, 3, 128, 160), mode='tensor')[0]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Return a folder with a plain run's config and checkpoint, and a photograph."""
    folder = tmp_path_factory.mktemp('end_to_end')
    config = run_config(folder / 'data', folder, fcos())
    config.model.test_cfg.update(score_thr=0.05, max_per_img=30)
    config.test_dataloader = config.val_dataloader
    for step in config.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (300, 200)  # neither is a multiple of 32
    config.dump(folder / 'config.py')
    torch.manual_seed(0)
    detector = confident(MODELS.build(config.model))
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(meta=meta, state_dict=detector.state_dict()), folder / 'epoch_1.pth')
    photograph = generated_image((250, 333), seed=1).permute(1, 2, 0).numpy()
    cv2.imwrite(str(folder / 'photograph.png'), photograph)
    return folder


@pytest.fixture(scope='module')
def exported(run, tmp_path_factory):
    """Return the ONNX model of the run."""
    folder = tmp_path_factory.mktemp('exported')
    call_tool('export_student.py', run / 'epoch_1.pth', '--config', run / 'config.py',
              '--out', folder / 's.pth', '--onnx', folder / 's.onnx', '--end-to-end')  # fmt: skip
    assert len(list(folder.iterdir())) == 2  # no temporary file is left
    return folder / 's.onnx'


@pytest.mark.smoke
def test_end_to_end__detects_as_mmdet_does(run, exported):
    """On an image that is resized by the recipe, and padded to the size divisor in the graph."""
    session = onnxruntime.InferenceSession(str(exported))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about['classes']) == list(CLASSES)
    detector = init_detector(str(run / 'config.py'), str(run / 'epoch_1.pth'), device='cpu')
    expected = inference_detector(detector, str(run / 'photograph.png')).pred_instances
    prepare = runpy.run_path(str(EXAMPLE))['prepare']
    image = cv2.imread(str(run / 'photograph.png'))
    images, factors = prepare(image, json.loads(about['input']))
    boxes, scores, labels, image_index = session.run(None, {'images': images})
    assert len(expected) > 10 and len(set(labels)) > 1 and set(image_index) == {0}
    np.testing.assert_allclose(scores, expected.scores, atol=1e-3)
    np.testing.assert_allclose(boxes / np.tile(factors, 2), expected.bboxes, atol=0.5)
    np.testing.assert_array_equal(labels, expected.labels)


def test_end_to_end__batch_of_images(exported):
    session = onnxruntime.InferenceSession(str(exported))
    images = np.stack([generated_image((100, 150), seed).numpy() for seed in range(3)])
    *found, image_index = session.run(None, {'images': images})
    assert list(image_index) == sorted(image_index) and set(image_index) == {0, 1, 2}
    for index in range(3):
        *alone, _ = session.run(None, {'images': images[index : index + 1]})
        assert len(alone[1]) and list(alone[1]) == sorted(alone[1], reverse=True)
        for one, other in zip(alone, found):
            np.testing.assert_allclose(one, other[image_index == index], atol=1e-3)


def test_example__runs_without_mmdet(run, exported):
    code = (
        'import runpy, sys\n'
        'for name in ("torch", "mmdet", "mmcv", "mmengine", "rdimkd_det"):\n'
        '    sys.modules[name] = None\n'
        f'sys.argv = ["", {str(exported)!r}, {str(run / "photograph.png")!r}]\n'
        f'runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines and all(line[1] in CLASSES and 0.3 <= float(line[2]) <= 1 for line in lines)
    assert all(0 <= float(side) <= 333 for line in lines for side in line[3:])


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'retinanet/retinanet_r18_fpn_1x_coco.py',
        'atss/atss_r50_fpn_1x_coco.py',
        'gfl/gfl_r50_fpn_1x_coco.py',
        'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        'yolox/yolox_tiny_8xb8-300e_coco.py',
    ],
)
def test_end_to_end__families(small_config, tmp_path, name):
    config = small_config(name)
    for key in ('score_thr', 'nms_pre'):
        if key in config.model.test_cfg:
            config.model.test_cfg[key] = dict(score_thr=0.05, nms_pre=1000)[key]
    detector = confident(MODELS.build(config.model)).eval()
    student = Student(config, detector.state_dict(), {})
    line = export_onnx(detector, student, tmp_path / 's.onnx', end_to_end.write_detector)
    same, of = (int(word) for word in line.split() if word.isdigit())
    assert of >= 600 and same >= 0.98 * of


@pytest.mark.parametrize(
    'resize', [None, dict(scale=(200, 120), keep_ratio=True), dict(scale=(90, 70))]
)
@pytest.mark.parametrize(
    'pad',
    [
        None,
        dict(size=(256, 224), pad_val=dict(img=(114, 113, 112))),
        dict(pad_to_square=True, size_divisor=32, pad_val=7),
        dict(size_divisor=16),
    ],
)
@pytest.mark.parametrize('size', [(101, 67), (67, 101)])
def test_recipe__as_the_example_follows_it(tmp_path, resize, pad, size):
    """The pixels are those of MMDetection's pipeline, for portraits and landscapes."""
    image = generated_image(size).permute(1, 2, 0).numpy()
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    steps = [dict(type=name, **it) for name, it in (('Resize', resize), ('Pad', pad)) if it]
    pipeline = [LOADING[0], *steps, LOADING[2]]
    dataset = dict(type='CocoDataset', pipeline=[LOADING[0], *steps, *LOADING[1:]])
    recipe = input_recipe(Config(dict(test_dataloader=dict(dataset=dataset))))
    recipe = json.loads(json.dumps(recipe))
    expected = Compose(pipeline)(dict(img_path=str(tmp_path / 'image.png')))['inputs'].numpy()
    found, factors = runpy.run_path(str(EXAMPLE))['prepare'](image, recipe)
    np.testing.assert_array_equal(found[0], expected)
    if not pad:
        np.testing.assert_allclose(factors, np.array(expected.shape[:0:-1]) / size[::-1])


# What is refused


@pytest.mark.parametrize(
    'steps, expected',
    [
        ([dict(type='RandomFlip', prob=0.5)], 'RandomFlip'),
        ([dict(type='Resize', scale_factor=0.5)], 'scale_factor'),
        ([dict(type='Pad', size_divisor=32), dict(type='Resize', scale=(64, 64))], 'Resize'),
        ([dict(type='Resize', scale=0.5)], 'scale'),
        ([], 'no test_dataloader'),
    ],
)
def test_recipe__that_cannot_be_told(steps, expected):
    dataset = dict(type='CocoDataset', pipeline=[*LOADING[:2], *steps, *LOADING[2:]])
    config = Config(dict(test_dataloader=dict(dataset=dataset)) if steps else {})
    with pytest.raises(ConfigError, match=expected):
        input_recipe(config)


@pytest.mark.parametrize('name, said', [
    ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'FasterRCNN predicts in a way of its own'),
    ('foveabox/fovea_r50_fpn_4xb4-1x_coco.py', 'FOVEA (FoveaHead) predicts in a way of its own'),
])  # fmt: skip
def test_end_to_end__others_are_refused(small_config, tmp_path, capsys, name, said):
    config = small_config(name, depth=18)
    config.dump(tmp_path / 'config.py')
    weights = MODELS.build(config.model).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'w.pth')
    line = refused(capsys, tmp_path / 'w.pth', tmp_path / 'out')
    assert said in line and 'https://github.com/open-mmlab/mmdeploy' in line
    assert not (tmp_path / 'out').exists()


def refused(capsys, checkpoint, folder, *options):
    options = options or ('--onnx', folder / 's.onnx', '--end-to-end')
    with pytest.raises(SystemExit) as stopped:
        call_tool('export_student.py', checkpoint, '--out', folder / 's.pth', *options)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize('nms', [
    None,
    dict(type='soft_nms', iou_threshold=0.5),
    dict(type='nms'),
    dict(type='nms', iou_threshold=0.5, max_num=5),
])  # fmt: skip
def test_end_to_end__other_suppression(nms):
    config = fcos()
    config.test_cfg.nms = nms
    with pytest.raises(ConfigError, match=r'test_cfg.nms is .* iou_threshold'):
        end_to_end.Detections(MODELS.build(config))


def test_end_to_end__without_onnx(run, tmp_path, capsys):
    line = refused(capsys, run / 'epoch_1.pth', tmp_path / 'out', '--end-to-end')
    assert 'give its file: --onnx F.onnx' in line
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_end_to_end__other_detections_are_not_written(run, tmp_path, monkeypatch):
    config = Config.fromfile(run / 'config.py')
    weights = torch.load(run / 'epoch_1.pth', weights_only=False)['state_dict']
    student = Student(config, weights, {})
    original = end_to_end.preprocess
    monkeypatch.setattr(end_to_end, 'preprocess', lambda *args: original(*args).flip(1))
    with pytest.raises(ConfigError, match=r'of \d+ detections .* nothing was written'):
        export_onnx(student.build(), student, tmp_path / 's.onnx', end_to_end.write_detector)
    assert not list(tmp_path.iterdir())
