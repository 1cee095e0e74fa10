"""Annotations and images that cannot be used."""

import json
import shutil

import pytest
from command_lines import one_line
from mmcv.transforms import BaseTransform
from mmdet.registry import HOOKS, TRANSFORMS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from runs import call_tool, run_tool

from rdimkd_det import ConfigError
from rdimkd_det.commands.mistakes import errors_explained


@pytest.mark.parametrize('place', ['train_dataloader.dataset', 'val_evaluator'])
def test_annotations__that_cannot_be_read_are_named(files, tmp_path, capsys, place):
    whole = (files / 'data/annotations.json').read_text()
    for name, content in (('cut.json', whole[:500]), ('broken.json', whole.replace('"id"', 'id'))):
        (tmp_path / name).write_text(content)
    (tmp_path / 'wide.json').write_text(whole, encoding='utf-16')
    (tmp_path / 'table.csv').write_text('filename,class,xmin\n0.png,red,3\n')
    (tmp_path / 'latin.json').write_text(whole.replace('red', 'rouille foncé'), encoding='latin1')
    for name, expected in (
        ('cut.json', f'annotations {tmp_path}/cut.json are cut off or damaged: Unterminated'),
        ('broken.json', f'annotations {tmp_path}/broken.json are cut off or damaged: Expecting'),
        ('wide.json', f'annotations {tmp_path}/wide.json cannot be used: a COCO file is a JSON '),
        ('table.csv', f'annotations {tmp_path}/table.csv cannot be used: a COCO file is a JSON '),
        ('latin.json', f'annotations {tmp_path}/latin.json are not UTF-8; save them so: '),
        ('', f'{tmp_path}: Is a directory.'),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            call_tool(
                *('train.py', files / 'plain.py', '--work-dir', tmp_path / 'work'),
                *('--cfg-options', f'{place}.ann_file={tmp_path / name}'),
            )
        assert stopped.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f'train.py: {expected}')
        assert not (tmp_path / 'work').exists()


NEEDS = 'each needs id, image_id, category_id, bbox ([x, y, width, height]) and area.'


def first(**changes):
    """Return a function that changes the first annotation; values of None drop their keys."""

    def change(content):
        entry = content['annotations'][0]
        entry.update(changes)
        content['annotations'][0] = {k: v for k, v in entry.items() if v is not None}

    return change


def without_images_of_size(content):
    content['images'] = [{**image, 'width': 20} for image in content['images']]


@pytest.mark.parametrize(
    'change, expected',
    [
        (first(area=None), "annotations FILE lack 'area' in the annotation {'bbox': [22, 8, 19, "),
        (first(bbox=None), "annotations FILE lack 'bbox' in the annotation {'area': 551, "),
        (first(image_id=None), "annotations FILE lack 'image_id' in the annotation {'area': 551, "),
        (
            first(category_id=None),
            "annotations FILE lack 'category_id' in the annotation {'area': ",
        ),
        (
            first(bbox=[3, 4]),
            "annotations FILE cannot be used: 'bbox' must be [x, y, width, height] in the ",
        ),
        (
            first(bbox=[10**30, 1, 9, 9]),
            "annotations FILE cannot be used: 'bbox' must be [x, y, width, height] in the ",
        ),
        (first(area=-(2**80)), "annotations FILE cannot be used: 'area' must be a number in the "),
        (
            lambda content: content['images'][0].update(width=2**64),
            "annotations FILE cannot be used: 'width' must be a number in the image ",
        ),
        (lambda content: content.pop('categories'), "annotations FILE lack 'categories'; a COCO "),
        (
            lambda content: content['images'][0].pop('file_name'),
            "annotations FILE lack 'file_name' in the image {'height': 64, 'id': 0, 'width': 80}; "
            'each needs id, file_name, width and height.',
        ),
        (
            lambda content: content['categories'][1].pop('name'),
            "annotations FILE lack 'name' in the category {'id': 1}; each needs id and name.",
        ),
        (
            lambda content: content.update(annotations=[]),
            'train data: no annotation in FILE; see whether it is the right file, and has the list '
            'annotations.',
        ),
        (without_images_of_size, 'train data: all 16 boxes of FILE are lost: '),
    ],
)
def test_annotations__what_they_lack_is_named(files, tmp_path, capsys, change, expected):
    content, file = json.loads((files / 'data/annotations.json').read_text()), tmp_path / 'a.json'
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stopped:
        call_tool(
            *('train.py', files / 'plain.py', '--work-dir', tmp_path / 'work', '--cfg-options'),
            f'train_dataloader.dataset.ann_file={file}',
            'train_dataloader.dataset.filter_cfg.filter_empty_gt=True',
            'train_dataloader.dataset.filter_cfg.min_size=32',
        )
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('train.py: ' + expected.replace('FILE', str(file)))
    if 'annotation {' in line:
        assert line.endswith(NEEDS)


@pytest.mark.parametrize('tool', ['analyze_projection.py', 'cache_teacher.py'])
def test_annotations__damaged_ones_are_named_by_tools_that_only_look(
    files, config, tmp_path, capsys, tool
):
    cut, out = tmp_path / 'cut.json', tmp_path / 'out.png'
    cut.write_text((files / 'data/annotations.json').read_text()[:500])
    path = config(lambda cfg: cfg['train_dataloader']['dataset'].update(ann_file=str(cut)))
    with pytest.raises(SystemExit) as stopped:
        call_tool(tool, path, '--out', out)
    assert stopped.value.code == 2
    line = one_line(tool, capsys.readouterr().err)
    assert line.startswith(f'{tool}: annotations {cut} are cut off or damaged: ')
    assert not out.exists()


def test_image__is_named_in_a_plain_training_too(files, tmp_path):
    image = tmp_path / 'images' / '3.png'
    shutil.copytree(files / 'data/images', image.parent)
    image.write_bytes(b'no image')
    done = run_tool(
        *('train.py', files / 'plain.py', '--work-dir', tmp_path / 'work', '--cfg-options'),
        f'train_dataloader.dataset.data_prefix.img={image.parent}',
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f'train.py: image {image} cannot be read (')


def test_annotations__byte_order_mark(files, tmp_path, capsys):
    text = (files / 'data/annotations.json').read_text()
    (tmp_path / 'bom.json').write_text(text, encoding='utf-8-sig')
    option = f'train_dataloader.dataset.ann_file={tmp_path}/bom.json'
    arguments = ('--work-dir', tmp_path / 'work', '--cfg-options', option)
    for tool, config in (('train.py', 'plain.py'), ('preflight.py', 'distilled.py')):
        with pytest.raises(SystemExit) as stopped:
            call_tool(tool, files / config, *arguments)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1] == (
            f'{tool}: annotations {tmp_path}/bom.json begin with a byte order mark; save the file '
            f'as UTF-8 without one.'
        )


@HOOKS.register_module(force=True)
class DetectsOnlyLater(Hook):
    """Lets the first validation have no detection, as at the begin of a training."""

    def before_val_epoch(self, runner):
        first = runner.epoch == 1
        runner.model.bbox_head.test_cfg.score_thr = 1.0 if first else 0.0


@pytest.mark.parametrize(
    'change, expected',
    [
        (lambda entry: entry.pop('iscrowd'), "lack 'iscrowd' in the annotation {"),
        (lambda entry: entry.update(iscrowd=None), 'cannot be used (TypeError: int() argument'),
        (lambda entry: entry.update(iscrowd='no'), 'cannot be used (ValueError: invalid literal'),
    ],
)
def test_annotations__explained_after_the_first_validation(files, tmp_path, change, expected):
    """Without a detection MMDetection evaluates nothing, and reads these entries later."""
    content = json.loads((files / 'data/annotations.json').read_text())
    change(content['annotations'][3])
    (tmp_path / 'val.json').write_text(json.dumps(content))
    cfg = Config.fromfile(files / 'plain.py')
    cfg.val_evaluator.ann_file = cfg.val_dataloader.dataset.ann_file = str(tmp_path / 'val.json')
    cfg.train_cfg.update(max_epochs=2, val_interval=1)
    cfg.custom_hooks, cfg.work_dir = [dict(type='DetectsOnlyLater')], str(tmp_path / 'work')
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ConfigError) as error, errors_explained(cfg, runner):
        runner.train()
    assert str(error.value).startswith(f'annotations {tmp_path}/val.json {expected}')
    assert runner.epoch == 2


@TRANSFORMS.register_module(force=True)
class FailsLater(BaseTransform):
    """Fails at an image of the second epoch."""

    left = 12

    def transform(self, results):
        FailsLater.left -= 1
        if not FailsLater.left:
            raise ValueError('a polygon of two points')
        return results


def test_data__explained_after_the_first_iteration(files, tmp_path):
    cfg = Config.fromfile(files / 'plain.py')
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='FailsLater'))
    cfg.train_cfg.update(max_epochs=3)
    cfg.work_dir = str(tmp_path / 'work')
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ConfigError, match='a polygon of two points'), errors_explained(cfg, runner):
        runner.train()
    assert runner.iter > 1


def test_interruption__is_none_of_the_config():
    """mmengine formats a config below a bare ``except``, which raises a SyntaxError at Ctrl-C."""
    with pytest.raises(KeyboardInterrupt), errors_explained(Config()):
        try:
            raise KeyboardInterrupt
        except BaseException:
            raise SyntaxError('Failed to format the config file')  # noqa: B904
