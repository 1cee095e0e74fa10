"""README, "No module named 'mmcv._ext'": MMDetection's train.py, and an import in the config."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mmdet
import pytest
from runs import REPOSITORY, fcos, run_config, write_data

TRAIN = Path(mmdet.__file__).parent / '.mim/tools/train.py'


def run(tool: Path, *words: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
    command = [sys.executable, tool, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.smoke
@pytest.mark.skipif(not TRAIN.is_file(), reason='this mmdet was installed without its tools')
@pytest.mark.parametrize('imports', [['rdimkd_det'], []], ids=['imported', 'not imported'])
def test_plain_training__needs_the_import_only(tmp_path, imports):
    cfg = run_config(write_data(tmp_path / 'data'), tmp_path / 'run', fcos(), max_epochs=1)
    cfg.train_cfg.val_interval = 1
    cfg.custom_imports.imports = imports
    cfg.dump(tmp_path / 'plain.py')
    done = run(TRAIN, tmp_path / 'plain.py')
    if not imports:
        compiled = find_spec('mmcv._ext').origin.endswith('.so')
        assert compiled == (done.returncode == 0)
        assert compiled or "No module named 'mmcv._ext'" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    done = run(REPOSITORY / 'tools/test.py', tmp_path / 'plain.py', tmp_path / 'run/epoch_1.pth')
    assert done.returncode == 0 and 'Average Precision' in done.stdout, done.stderr
