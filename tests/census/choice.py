"""Which config stands for a folder of MMDetection's: a rule, and the forms that are tried."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import detectors
from mmengine.config import Config

# Words of a config's name that tell its size, the smallest first.
SIZES = (
    *('nano', 'tiny', 'r18', 'b0', 't', 'mobilenetv2', 'w18', '400mf', 'r34', 's', '800mf'),
    *('r50', 's50', 'b3', 'm', 'r101', 's101', 'l', 'x101'),
)
CANDIDATES = 2
NARROWED = ('ResNet', 'SwinTransformer')  # the backbones that `small_config` makes narrow


class Form(NamedTuple):
    """A config as it is tried."""

    name: str
    channels: int | None  # of the neck of a narrowed detector; None for one as it is
    side: int  # of the images, in pixels

    def config(self) -> Config:
        """Return the config without pretrained weights, and without what needs large images."""
        if self.channels is None:
            config = detectors.plain_config(self.name)
        else:
            config = detectors.small_config(self.name, channels=self.channels)
        for part in detectors.children(config.model):
            if part.get('batch_augments'):
                part['batch_augments'] = None  # to 1024 pixels
            if 'num_cp' in part:
                part['num_cp'] = 0  # activation checkpointing, by fairscale
            if 'teacher_ckpt' in part:  # MMDetection's own distillations
                part['teacher_ckpt'] = None
        return config


def folders() -> list[str]:
    """Return the names of all folders of configs, without the files that they inherit from."""
    found = {path.parent.name for path in detectors.CONFIGS.glob('*/*.py')}
    return sorted(found - {'_base_'})


def forms(folder: str) -> Iterator[Form]:
    """Yield the smallest configs of a folder that have a model, each in the forms to try.

    Small and fast first: narrowed, as it is, and on larger images.
    """
    num = 0
    for path in sorted((detectors.CONFIGS / folder).glob('*.py'), key=_size):
        name = f'{folder}/{path.name}'
        model = Config.fromfile(path, import_custom_modules=False).get('model') or {}
        if 'type' not in model:
            continue
        detector = model.get('detector') or model  # of a tracker, or of a semi-supervised training
        neck = detector.get('neck') or {}
        if (detector.get('backbone') or {}).get('type') in NARROWED and 'out_channels' in neck:
            yield Form(name, 64, 128)
            # The channels of a transformer, say, stay.
            yield from (Form(name, neck.out_channels, side) for side in (128, 320))
        yield Form(name, None, 128)
        yield Form(name, None, 320)
        num += 1
        if num == CANDIDATES:
            return


def _size(path: Path) -> tuple:
    words = re.split('[-_]', path.stem.lower())
    known = [SIZES.index(word) for word in words if word in SIZES]
    # Last those for pretraining, some of which MMDetection can only test.
    return 'pretrain' in words, min(known, default=len(SIZES)), len(path.stem), path.stem
