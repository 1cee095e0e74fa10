"""A data set with two image sizes, and trainings on it from a cache of the teacher's maps."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import torch
from mmengine.config import Config
from runs import call_tool, distilled, fcos, load, run_config, write_data, write_teacher

FLIP = 3  # index of RandomFlip in the pipeline of ``run_config``


def write_mixed_data(root: Path) -> Path:
    """Write the data of ``write_data`` with every second image upright.

    The pipeline turns them into images of 64 x 80 and 80 x 60, so a batch of both is padded on two
    sides.
    """
    write_data(root)
    content = json.loads((root / 'annotations.json').read_text())
    for image in content['images'][::2]:
        path = str(root / 'images' / image['file_name'])
        cv2.imwrite(path, cv2.imread(path)[:, :48])
        image['width'] = 48
    (root / 'annotations.json').write_text(json.dumps(content))
    return root


def cached_run(folder: Path, name: str = 'run', cache: bool = True, **loss) -> Config:
    """Return the config of a training with flips in ``folder``, which has 'data' and 'teacher'."""
    teacher = {
        'config': str(folder / 'teacher/teacher.py'),
        'checkpoint': str(folder / 'teacher/teacher.pth'),
    }
    if cache:
        teacher['cache'] = str(folder / 'cache')
    config = run_config(folder / 'data', folder / name, distilled(fcos(), teacher, **loss))
    config.train_dataloader.dataset.pipeline[FLIP].prob = 0.5
    return config


def make_cache(config: Config, *args: object) -> Path:
    """Run tools/cache_teacher.py on a config; return the path of the cache."""
    path = Path(config.work_dir).with_suffix('.py')
    config.dump(path)
    call_tool('cache_teacher.py', path, *args)
    return Path(config.model.teacher.cache)


def write_files(folder: Path, mixed: bool = False) -> Path:
    """Write the data set and the teacher into a folder."""
    (write_mixed_data if mixed else write_data)(folder / 'data')
    teacher = write_teacher(folder / 'teacher')
    # As after a training: with the initial biases, the maps do not depend on padding.
    checkpoint = load(teacher['checkpoint'])
    for name, value in checkpoint['state_dict'].items():
        if name.endswith('.bias'):
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) / 10)
    torch.save(checkpoint, teacher['checkpoint'])
    return folder
