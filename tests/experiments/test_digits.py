"""The digits data set: what is drawn, what is written, and what an interrupted run leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from runs import call_tool

from experiments.digits.drawing import draw_background, overlap
from experiments.digits.images import DigitsOptions, image_rngs, load_sources
from experiments.digits.making import make_digits
from rdimkd_det import ConfigError

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'make_digits.py'
SIZE = (130, 90)
SMALL = DigitsOptions(image_size=SIZE, num_train=60, num_val=15, digits_per_image=(2, 5), seed=3)
GREY = np.array([0.114, 0.587, 0.299])  # BT.601 of BGR


def files_of(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()
    }


def coco_of(root, split):
    return json.loads((root / 'annotations' / f'{split}.json').read_text())


def drawings_of(root, options, split='train'):
    """Yield (image, background, annotations), the background drawn again without digits."""
    coco = coco_of(root, split)
    for index, entry in enumerate(coco['images']):
        image = cv2.imread(str(root / split / entry['file_name'])).astype(float)
        background = draw_background(image_rngs(options.seed, split, index)[0], options.image_size)
        found = [each for each in coco['annotations'] if each['image_id'] == entry['id']]
        yield image, background.astype(float), found


def run_tool(capsys, *arguments):
    """Run the command line in this process: importing mmdet anew each time takes seconds."""
    status = 0
    try:
        call_tool('make_digits.py', *arguments)
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope='module')
def small_set(tmp_path_factory):
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', SMALL)


def test_make_digits__same_seed_same_bytes(small_set, tmp_path):
    again = files_of(make_digits(tmp_path / 'again', SMALL))
    assert len(again) == 60 + 15 + 2
    assert again == files_of(small_set)


def test_make_digits__images_do_not_depend_on_their_number(small_set, tmp_path):
    fewer = DigitsOptions(**{**vars(SMALL), 'num_train': 4, 'num_val': 2})
    images = {k: v for k, v in files_of(make_digits(tmp_path / 'd', fewer)).items() if 'png' in k}
    assert len(images) == 6
    assert images.items() <= files_of(small_set).items()


def test_make_digits__other_seed_other_images(small_set, tmp_path):
    other = make_digits(tmp_path / 'd', DigitsOptions(**{**vars(SMALL), 'seed': 4}))
    assert not set(files_of(other).values()) & set(files_of(small_set).values())


def test_make_digits__train_and_val_show_different_digits(small_set):
    from sklearn.datasets import load_digits

    digits, shown = load_digits(), {}
    for split in ('train', 'val'):
        annotations = coco_of(small_set, split)['annotations']
        for each in annotations:
            assert each['category_id'] == digits.target[each['source']] + 1
        shown[split] = {digits.images[each['source']].tobytes() for each in annotations}
    assert not shown['train'] & shown['val']


@pytest.mark.parametrize('seed', [0, 7])
def test_load_sources__split_is_complete_and_stratified(seed):
    _, labels, indices = load_sources(seed)
    assert sorted(np.concatenate(list(indices.values()))) == list(range(1797))
    shares = np.bincount(labels[indices['val']]) / np.bincount(labels)
    assert np.abs(shares - 0.2).max() < 0.01


def test_make_digits__is_valid_coco(small_set):
    from pycocotools.coco import COCO

    for split, number in (('train', 60), ('val', 15)):
        coco = COCO(str(small_set / 'annotations' / f'{split}.json'))
        assert [coco.cats[i]['name'] for i in range(1, 11)] == list('0123456789')
        assert len(coco.imgs) == number
        for image_id, image in coco.imgs.items():
            assert cv2.imread(str(small_set / split / image['file_name'])).shape == (90, 130, 3)
            boxes = [each['bbox'] for each in coco.imgToAnns[image_id]]
            assert 2 <= len(boxes) <= 5
            for i, (x, y, w, h) in enumerate(boxes):
                assert 0 <= x < x + w <= 130
                assert 0 <= y < y + h <= 90
                # A "1" is narrow, but one side always has the asked size; rotation adds to it.
                assert 0.8 * 12 <= max(w, h) <= 1.3 * 44
                assert all(overlap(boxes[i], other) <= 0.1 for other in boxes[:i])


def test_boxes__are_tight(small_set):
    """Where the image differs from its background is ink: none outside, some on each side."""
    for image, background, annotations in drawings_of(small_set, SMALL):
        ink = (image != background).any(2)
        outside = ink.copy()
        for each in annotations:
            x, y, w, h = each['bbox']
            outside[y : y + h, x : x + w] = False
            box = ink[y : y + h, x : x + w]
            for side in (box[:2], box[-2:], box[:, :2], box[:, -2:]):
                assert side.any(), each
        assert not outside.any()


def test_digits__stand_out(small_set):
    """The full ink of each digit is far in brightness from what it was drawn on."""
    count = 0
    for image, background, annotations in drawings_of(small_set, SMALL):
        for each in annotations:
            x, y, w, h = each['bbox']
            new, old = (part[y : y + h, x : x + w] @ GREY for part in (image, background))
            difference = np.abs(new - old)
            assert np.percentile(difference, 98) >= 45, each
            count += 1
    assert count >= 120


def test_digits__can_be_read(small_set):
    """The ink in a box, shrunk, is nearest to a handwritten digit of the annotated class."""
    images, labels, _ = load_sources()

    def normalise(ink):
        rows, columns = (np.flatnonzero((ink > 0.1).any(axis)) for axis in (1, 0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cv2.resize(ink.astype(np.float32), (8, 8), interpolation=cv2.INTER_AREA).ravel()

    known = np.stack([normalise(each) for each in images])
    right = []
    for image, background, annotations in drawings_of(small_set, SMALL):
        for each in annotations:
            x, y, w, h = each['bbox']
            ink = np.abs(image - background).sum(2)[y : y + h, x : x + w]
            errors = ((known - normalise(ink / ink.max())) ** 2).sum(1)
            right.append(labels[errors.argmin()] + 1 == each['category_id'])
    assert np.mean(right) >= 0.9, np.mean(right)


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL], ids=['SIGINT', 'SIGKILL'])
def test_interrupted__leaves_nothing_at_the_target(how, tmp_path, monkeypatch):
    target = tmp_path / 'parent' / 'digits'
    # This stands for the package's own __init__, which imports mmdet: seconds for each process.
    light = tmp_path / 'light' / 'rdimkd_det'
    light.mkdir(parents=True)
    (light / '__init__.py').write_text(f'__path__ = [{str(ROOT / "rdimkd_det")!r}]')
    process = subprocess.Popen(
        [sys.executable, TOOL, '--out', target],
        env={**os.environ, 'PYTHONPATH': str(light.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(list(target.parent.rglob('*.png'))) < 20:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not target.exists()
    process.send_signal(how)
    error = process.communicate(timeout=30)[1]

    assert not target.exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert error == 'make_digits.py: interrupted.\n'
    else:
        assert len(list(target.parent.iterdir())) == 1  # the next run finds it
        make_digits(target, DigitsOptions(num_train=1, num_val=1))
    assert [path.name for path in target.parent.iterdir()] == (
        [] if how == signal.SIGINT else ['digits']
    )


def test_make_digits__leaves_the_work_of_a_live_run(tmp_path):
    import socket

    other = tmp_path / f'.digits.making-{socket.gethostname()}-{os.getppid()}'
    other.mkdir()
    make_digits(tmp_path / 'digits', DigitsOptions(num_train=1, num_val=1))
    assert other.is_dir()


def test_failed_replacement__keeps_the_old_set(tmp_path, monkeypatch):
    target = make_digits(tmp_path / 'digits', DigitsOptions(num_train=2, num_val=1))
    before, replace = files_of(target), os.replace

    def fail_on_new(source, destination):
        if Path(source).name == 'new':
            raise OSError(28, 'No space left on device')
        replace(source, destination)

    monkeypatch.setattr(os, 'replace', fail_on_new)
    with pytest.raises(ConfigError, match=r'cannot write .*digits: No space left on device'):
        make_digits(target, DigitsOptions(num_train=3, num_val=1), force=True)
    assert files_of(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


def test_tool__existing_target(tmp_path, capsys):
    def run(*arguments):
        counts = ('--num-val', 1, '--image-size', '70x60')
        return run_tool(capsys, '--out', tmp_path / 'd', *counts, *arguments)

    status, output, error = run('--num-train', 2)
    assert (status, error) == (0, '')
    assert '2 train and 1 val images made' in output
    stamp = (tmp_path / 'd').stat().st_ctime_ns

    status, output, error = run('--num-train', 2)
    assert (status, error) == (0, '')
    assert output == f'{tmp_path / "d"} already exists, made with these options.\n'

    status, output, error = run('--num-train', 3)
    assert (status, output) == (2, '')
    assert error.startswith('make_digits.py: ') and error.count('\n') == 1 and '--force' in error
    assert (tmp_path / 'd').stat().st_ctime_ns == stamp

    assert run('--num-train', 3, '--force')[0] == 0
    assert len(coco_of(tmp_path / 'd', 'train')['images']) == 3

    (tmp_path / 'd' / 'train' / '000002.png').unlink()
    status, _, error = run('--num-train', 3)
    assert status == 2
    assert 'incomplete' in error


def test_tool__never_deletes_what_is_not_digits(tmp_path, capsys):
    (tmp_path / 'thesis.tex').write_text('years of work')
    status, _, error = run_tool(capsys, '--out', tmp_path, '--force')
    assert status == 2
    assert error == (
        f'make_digits.py: {tmp_path} exists and is not a digits data set; choose another place.\n'
    )
    assert (tmp_path / 'thesis.tex').read_text() == 'years of work'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--num-val', '0'], 'at least 1, got 3000 and 0'),
        (['--seed', '-1'], 'seed must not be negative, got -1'),
        (['--digits-per-image', '3', '2'], 'got 3 and 2'),
        (['--digit-size', '4', '20'], 'got 4 and 20'),
        (['--image-size', '96x50'], 'need an image_size of at least 58x58, got 96x50'),
        (['--image-size', 'large'], "--image-size must be like 96 or 128x96, got 'large'"),
        (['--image-size', '96x'], "--image-size must be like 96 or 128x96, got '96x'"),
        (['--digits-per-image', '1', '40'], '40 digits of 12 pixels or more are too many'),
        (['--out', f'{__file__}/digits'], 'Not a directory'),
        (['--out', __file__], 'is not a digits data set'),
    ],
)
def test_tool__bad_options(arguments, message, tmp_path, capsys):
    status, output, error = run_tool(capsys, '--out', tmp_path / 'parent' / 'd', *arguments)
    assert (status, output) == (2, '')
    assert error.startswith('make_digits.py: ')
    assert error.count('\n') == 1
    assert message in error
    assert not any(tmp_path.iterdir())


def test_options__tightest_layout_finds_room(tmp_path):
    """What the check of the options lets through can be drawn."""
    tight = DigitsOptions(
        image_size=(58, 58), num_train=20, num_val=1, digits_per_image=(5, 5), digit_size=(12, 44)
    )
    coco = coco_of(make_digits(tmp_path / 'd', tight), 'train')
    assert len(coco['annotations']) == 100
