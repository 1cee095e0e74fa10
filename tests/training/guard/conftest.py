"""Fixtures of the tests of the guard: a run that every interruption would change."""

import pytest
from interruptions import BATCHES, EPOCHS
from runs import distilled, fcos, run_config


@pytest.fixture
def config(files, tmp_path):
    """Make the config of a run that draws random numbers and saves at every iteration."""

    def config(name='run', num_workers=0, persistent=False, model=None, **overrides):
        teacher = dict(
            config=str(files / 'teacher/teacher.py'), checkpoint=str(files / 'teacher/teacher.pth')
        )
        options = {
            'train_dataloader.dataset.pipeline.3.prob': 0.5,
            'train_dataloader.batch_size': 8 // BATCHES,
            'train_dataloader.num_workers': num_workers,
            'train_dataloader.persistent_workers': persistent,
            'train_cfg.val_interval': 2,
            'default_hooks.checkpoint.by_epoch': False,
            'default_hooks.checkpoint.max_keep_ckpts': 2,
            **overrides,
        }
        model = model or distilled(fcos(), teacher)
        return run_config(files / 'data', tmp_path / name, model, EPOCHS, **options)

    return config
