"""Preflight of a teacher that has really been trained: to tell colours, on coloured boxes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.logging import MMLogger
from preflights import TEACHER
from runs import call_tool, distilled, fcos, run_config, train, write_data


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """Return a data set, and the checkpoint of an FCOS trained on it for 150 iterations."""
    folder = tmp_path_factory.mktemp('trained')
    data = write_data(folder / 'data', num_images=24)
    config = run_config(data, folder / 'work', fcos(**TEACHER), max_epochs=25)
    config.optim_wrapper.optimizer = dict(type='Adam', lr=0.002)
    config.default_hooks.checkpoint.interval = 25
    config.train_cfg.val_interval = 100
    train(config)
    return SimpleNamespace(data=data, checkpoint=folder / 'work/epoch_25.pth')


@pytest.fixture
def config(trained, tmp_path):
    """Write a distilled config with a modified teacher's ``data_preprocessor``; return its path."""

    def config(change=None, checkpoint=trained.checkpoint, **preprocessor) -> Path:
        teacher = run_config(trained.data, tmp_path / 'unused', fcos(**TEACHER))
        teacher.model.data_preprocessor.update(preprocessor)
        teacher.dump(tmp_path / 'teacher.py')
        files = dict(config=str(tmp_path / 'teacher.py'), checkpoint=str(checkpoint))
        cfg = run_config(trained.data, tmp_path / 'work', distilled(fcos(), files))
        if change is not None:
            change(cfg)
        cfg.dump(tmp_path / 'config.py')
        return tmp_path / 'config.py'

    return config


@pytest.fixture
def preflight(config, tmp_path, capsys):
    """Run the tool on a config written by :func:`config`; return its status, output and report."""
    logger = MMLogger.get_current_instance()
    level = logger.level

    def preflight(*args, **options) -> SimpleNamespace:
        path, written = config(**options), tmp_path / 'report.json'
        written.unlink(missing_ok=True)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            call_tool('preflight.py', path, *args, '--json', written)
        captured = capsys.readouterr()
        report = json.loads(written.read_text()) if written.exists() else None
        return SimpleNamespace(
            status=stopped.value.code, out=captured.out, err=captured.err, report=report
        )

    yield preflight
    logger.setLevel(level)
