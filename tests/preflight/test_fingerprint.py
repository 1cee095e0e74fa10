"""Is the teacher trained, and is its input what it was trained on?"""

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from preflights import CAFFE, folded, found, of_animals, random_weights
from runs import fcos, load, run_tool
from torch import nn

from rdimkd_det.preflight import input_evidence as fingerprint
from rdimkd_det.preflight.input_evidence import InputScore, batch_norms, better_input, divergence
from rdimkd_det.preflight.input_formats import IMAGENET, WELL_KNOWN, InputFormat, candidates


@pytest.mark.smoke
def test_preflight__all_is_well(preflight, trained):
    done = preflight('--eval-teacher')
    assert done.status == 0 and done.report['passed'], done.out
    assert {finding['severity'] for finding in done.report['findings']} == {'ok'}
    fine = found(done, 'ok')
    keys = [k for k in load(trained.checkpoint)['state_dict'] if not k.startswith('bbox_head')]
    assert f'epoch_25.pth: {len(keys)} of {len(keys)} keys' in fine['Teacher weights'][0]
    assert fine['Teacher classes'][0] == 'the same'
    assert 'the bridge has nothing to do' in fine['Input'][0]
    ap = done.report['figures']['teacher_ap']['Teacher AP']
    assert ap['own'] == ap['bridge'] > 0.25
    # It fits on a screen, without colours.
    assert len(done.out.splitlines()) <= 60 and '\x1b' not in done.out
    assert done.out.splitlines()[-1] == 'All is well.'
    assert done.err == ''


@pytest.mark.slow
def test_preflight__as_a_process_says_nothing_else(config):
    """PyTorch would warn about meshgrid and, with other detectors, log a line of its profiler."""
    done = run_tool('preflight.py', config())
    assert done.returncode == 0 and done.stderr == ''
    of_host = 'Could not import OneDL. Skipping OneDL datasets.\n'  # OneDL's mmdet, at its import
    assert done.stdout.replace(of_host, '').startswith('RdimKD preflight of ')


def test_preflight__swapped_channels(preflight, tmp_path):
    done = preflight('--eval-teacher', bgr_to_rgb=False)
    assert done.status == 1
    errors = found(done, 'error')
    assert errors.keys() == {"Teacher's input", 'Teacher AP'}
    text, remedy = errors["Teacher's input"]
    assert text.startswith('looks like swapped channels')
    assert remedy.startswith('set bgr_to_rgb=True in the data_preprocessor')
    assert remedy.endswith(str(tmp_path / 'teacher.py'))
    # The AP tells as well: red and blue are taken for each other.
    ap = done.report['figures']['teacher_ap']['Teacher AP']
    assert ap['bridge'] == ap['own'] < 0.7 * ap['corrected']


@pytest.mark.parametrize(
    'preprocessor',
    [CAFFE, dict(mean=[0.0] * 3, std=[255.0] * 3), dict(mean=None, std=None, bgr_to_rgb=False)],
    ids=['caffe', 'from 0 to 1', 'from 0 to 255'],
)
def test_preflight__wrong_normalisation(preflight, preprocessor):
    done = preflight(**preprocessor)
    assert done.status == 1
    errors = found(done, 'error')
    assert errors.keys() == {"Teacher's input"}
    text, remedy = errors["Teacher's input"]
    assert text.startswith("looks like another normalisation, 'torchvision, RGB'")
    assert 'mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True' in remedy


@pytest.mark.smoke
def test_preflight__untrained_checkpoint(preflight, tmp_path):
    done = preflight('--eval-teacher', checkpoint=random_weights(tmp_path))
    assert done.status == 1
    errors = found(done, 'error')
    assert errors.keys() == {'Teacher weights', 'Teacher AP'}
    text, remedy = errors['Teacher weights']
    assert 'random.pth looks untrained: every bias of backbone and neck is exactly 0' in text
    assert 'model.teacher.checkpoint' in remedy
    assert 'not trained, not of these data' in errors['Teacher AP'][0]


def test_preflight__untrained_neck(preflight, trained, tmp_path):
    weights = load(trained.checkpoint)['state_dict']
    for key, value in weights.items():
        if key.startswith('neck.') and key.endswith('.bias'):
            value.zero_()
    torch.save(dict(state_dict=weights), tmp_path / 'half.pth')
    done = preflight('--samples', 0, checkpoint=tmp_path / 'half.pth')
    assert 'every bias of neck is exactly 0' in found(done, 'error')['Teacher weights'][0]


def test_preflight__folded_batch_norm(preflight, trained, tmp_path):
    """Only the teacher's loss can be used, and it detects wrong channels and normalisation."""
    checkpoint = folded(trained, tmp_path)
    done = preflight(checkpoint=checkpoint)
    assert done.status == 0, done.out
    assert "the teacher's loss" in found(done, 'ok')["Teacher's input"][0]
    assert 'divergence' not in found(done, 'ok')["Teacher's input"][0]
    swapped = found(preflight(checkpoint=checkpoint, bgr_to_rgb=False), 'error')
    assert swapped["Teacher's input"][0].startswith('looks like swapped channels')
    caffe = found(preflight(checkpoint=checkpoint, **CAFFE), 'error')
    assert "'torchvision, RGB'" in caffe["Teacher's input"][0]


def test_preflight__statistics_without_a_class_in_common(preflight, trained):
    done = preflight(checkpoint=of_animals(trained.checkpoint), **CAFFE)
    text, _ = found(done, 'error')["Teacher's input"]
    assert "'torchvision, RGB': divergence" in text and "the teacher's loss" not in text


def test_preflight__nothing_to_go_by(preflight, trained, tmp_path):
    """Without statistics and common classes, the input and the AP cannot be checked."""
    done = preflight('--eval-teacher', checkpoint=of_animals(folded(trained, tmp_path)))
    fine = found(done, 'ok')
    assert done.status == 0 and not found(done, 'warning')  # feature maps carry over
    assert "knows 0 of the data set's 3, not red, green, blue" in fine['Teacher classes'][0]
    assert fine["Teacher's input"][0].startswith('not judged: the teacher has no BatchNorm')
    assert fine['Teacher AP'][0] == 'cannot be measured: no class in common'


def test_preflight__hardly_trained(preflight, trained, tmp_path):
    """Statistics that still are the initial values, and such a teacher's loss, tell nothing."""
    checkpoint = load(trained.checkpoint)
    for key, value in checkpoint['state_dict'].items():
        if key.endswith('num_batches_tracked'):
            value.fill_(4)  # of 0.9 ** 4 they consist of the initial 0 and 1
    torch.save(checkpoint, tmp_path / 'new.pth')
    done = preflight(checkpoint=tmp_path / 'new.pth', **CAFFE)
    assert not found(done, 'error') and not found(done, 'warning')
    assert 'have seen a few batches only' in found(done, 'ok')["Teacher's input"][0]


@pytest.mark.parametrize(
    'options, severity', [({}, 'warning'), (dict(mean=[0.0, 0.0, 0.0]), 'error')]
)
def test_preflight__says_why_the_loss_was_not_measured(preflight, monkeypatch, options, severity):
    def fails(instances, size):
        raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB.')

    monkeypatch.setattr(fingerprint, 'with_masks', fails)
    done = preflight(**options)
    (finding,) = (it for it in done.report['findings'] if it['topic'] == "Teacher's input")
    assert finding['severity'] == severity
    assert 'divergence' in finding['text'] and "the teacher's loss" not in finding['text']
    assert finding['text'].endswith(
        '; its own loss could not be measured: '
        'RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB.'
    )


def test_preflight__neither_statistics_nor_loss(preflight, trained, tmp_path, monkeypatch):
    def fails(instances, size):
        raise KeyError('the annotations have no masks')

    monkeypatch.setattr(fingerprint, 'with_masks', fails)
    done = preflight(checkpoint=folded(trained, tmp_path))
    text, _ = found(done, 'warning')["Teacher's input"]
    assert text == (
        'cannot be checked: the teacher has no BatchNorm statistics of its training; its own loss '
        'could not be measured: KeyError: the annotations have no masks'
    )


def test_input_format():
    preprocessor = MODELS.build(fcos().data_preprocessor)
    assert InputFormat.of(preprocessor) == IMAGENET
    assert InputFormat.of(IMAGENET.build(like=preprocessor)) == IMAGENET
    assert IMAGENET.swapped().as_config() == (
        'mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=False'
    )


def test_candidates__each_format_once():
    formats = candidates(WELL_KNOWN['from 0 to 255, BGR'])
    assert next(iter(formats)) == 'as configured'
    assert len(set(formats.values())) == len(formats) == len(WELL_KNOWN)
    assert formats['as configured, channels swapped'] == WELL_KNOWN['from 0 to 255, RGB']


def test_divergence__literal():
    """Literal: (v + d^2) / s and (s + d^2) / v, halved, minus 1; the floor is negligible."""
    norm = nn.BatchNorm2d(2, eps=0.0).double()
    norm.running_mean[:], norm.running_var[:] = torch.tensor([0.0, 1.0]), torch.tensor([1e6, 1e6])
    same = (norm.running_mean.clone(), norm.running_var.clone())
    assert divergence([(norm, same)]) == 0
    # 1e6 and 1e3 of floor against 2e6 and the floor; shifted by 1000 in the second channel.
    moved = (torch.tensor([0.0, 1001.0]).double(), torch.tensor([2e6, 1e6]).double())
    s, v = 1.001e6, 2.001e6
    first = np.log1p((v / s + s / v) / 2 - 1)
    second = np.log1p((s + 1e6) / s - 1)
    assert divergence([(norm, moved)]) == pytest.approx((first + second) / 2, rel=1e-6)
    # The second layer weighs half of the first.
    assert divergence([(norm, same), (norm, moved)]) == pytest.approx(
        (first + second) / 2 / 3, rel=1e-6
    )
    assert divergence([]) is None


def test_batch_norms__only_those_with_statistics():
    network = nn.Module()
    network.backbone = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.GroupNorm(1, 3))
    network.backbone[1].running_mean += 1
    assert batch_norms(network) == [network.backbone[1]]


@pytest.mark.parametrize(
    'configured, other, better',
    [
        ((0.02, 1.0), (0.1, 1.0), False),
        ((0.5, 1.0), (0.1, 1.0), True),
        ((0.02, 1.0), (0.02, 0.8), True),
        ((0.02, 1.0), (0.02, 0.95), False),
        ((0.02, 1.0), (5.0, 0.5), False),  # statistics come first
        ((None, 1.0), (None, 0.8), True),
        ((0.5, None), (0.1, None), True),
        ((None, None), (None, None), False),
        ((0.0066, 14.0), (0.039, 10.1), False),  # seen on BCCD, with colour augmentation
        ((1.04, 6.5), (0.475, 4.6), False),  # seen 40 iterations after COCO: neither is near
        ((2.6, None), (0.24, None), True),  # seen with COCO's weights on BCCD
    ],
)
def test_better_input(configured, other, better):
    assert bool(better_of(configured, other)) is better


def better_of(configured, other, **noise):
    scores = [
        InputScore('as configured', IMAGENET, *configured),
        InputScore('other', IMAGENET.swapped(), *other, **noise),
    ]
    return better_input(scores)


@pytest.mark.parametrize(
    'configured, other, noise',
    [
        ((0.3, None), (0.1, None), dict(divergence_error=0.1)),
        ((None, 1.0), (None, 0.8), dict(loss_error=0.1)),
        ((None, 1.0), (None, 0.8), dict(unrelated_loss=0.81)),
    ],
)
def test_better_input__none_within_the_noise(configured, other, noise):
    """A loss that is as low with the labels of other images tells nothing either."""
    assert better_of(configured, other) and not better_of(configured, other, **noise)
    less = {name: 0.1 * value if 'error' in name else 10.0 for name, value in noise.items()}
    assert better_of(configured, other, **less)


def test_standard_errors__literal():
    assert fingerprint._standard_error([1.0, 2.0, 6.0], [0.0, 0.0, 0.0]) == pytest.approx(
        np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    )
    # Of a mean, the jackknife gives the standard error of the mean.
    values = np.array([1.0, 2.0, 6.0, 7.0])
    without = [(values.sum() - value) / 3 for value in values]
    expected = values.std(ddof=1) / 2
    assert fingerprint._jackknife(without, [0.0] * 4) == pytest.approx(expected)
    assert fingerprint._standard_error([1.0, 2.0], [0.0, 0.0]) == np.inf
    assert fingerprint._jackknife([None] * 4, [None] * 4) == np.inf
