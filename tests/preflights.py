"""What tests of preflight share."""

from pathlib import Path

import torch
from mmdet.registry import MODELS
from runs import fcos, load

TEACHER = dict(base_channels=16, fpn_channels=24)


CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)


def found(done, severity: str) -> dict[str, tuple[str, str]]:
    """Return the findings of a severity, topic to text and remedy."""
    return {
        finding['topic']: (finding['text'], finding['remedy'])
        for finding in done.report['findings']
        if finding['severity'] == severity
    }


def random_weights(folder: Path) -> Path:
    """Write a checkpoint of the same architecture with random weights."""
    model = MODELS.build(fcos(**TEACHER))
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta=dict()), folder / 'random.pth')
    return folder / 'random.pth'


def folded(trained, folder: Path) -> Path:
    """Write the checkpoint with BatchNorm statistics folded into the affine parameters.

    Detectron2's checkpoints are like this.
    """
    checkpoint = load(trained.checkpoint)
    weights = checkpoint['state_dict']
    for key in [key for key in weights if key.endswith('running_mean')]:
        norm = key.rsplit('.', 1)[0]
        scale = weights[f'{norm}.weight'] / (weights[f'{norm}.running_var'] + 1e-5).sqrt()
        weights[f'{norm}.bias'] -= weights[f'{norm}.running_mean'] * scale
        weights[f'{norm}.weight'] = scale
        weights[f'{norm}.running_mean'].zero_()
        weights[f'{norm}.running_var'].fill_(1)
    torch.save(checkpoint, folder / 'folded.pth')
    return folder / 'folded.pth'


def of_animals(checkpoint: Path) -> Path:
    """Write the checkpoint with classes that are not in the data."""
    content = load(checkpoint)
    content['meta']['dataset_meta'] = dict(classes=('cat', 'dog', 'cow'))
    torch.save(content, checkpoint.with_name('animals.pth'))
    return checkpoint.with_name('animals.pth')
