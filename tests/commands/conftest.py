"""Configs for the command lines, and how these are called."""

import json
from pathlib import Path

import pytest
import torch
from command_lines import one_line
from malicious import Payload
from mmengine.config import Config
from runs import call_tool, distilled, fcos, load, run_config, write_data, write_teacher


@pytest.fixture(scope='session')
def files(tmp_path_factory):
    """Folder with a data set, a teacher, and configs of a distilled and a plain student."""
    folder = tmp_path_factory.mktemp('files')
    data = write_data(folder / 'data')
    teacher = write_teacher(folder / 'teacher')
    config = run_config(data, folder / 'unused', distilled(fcos(), teacher), max_epochs=1)
    config.dump(folder / 'distilled.py')
    based = {key: value for key, value in config.items() if not key.startswith('custom_')}
    Config(based).dump(folder / 'without_hook.py')
    (folder / 'based.py').write_text(
        "_base_ = ['without_hook.py', 'rdimkd_det::_base_/distill.py']\n"
    )
    run_config(data, folder / 'unused', fcos(), max_epochs=1).dump(folder / 'plain.py')
    return folder


@pytest.fixture
def config(files, tmp_path):
    """Write a config like distilled.py, modified by ``change(config)``; return its path."""

    def config(change) -> Path:
        teacher = {
            'config': str(files / 'teacher/teacher.py'),
            'checkpoint': str(files / 'teacher/teacher.pth'),
        }
        cfg = run_config(files / 'data', tmp_path / 'work', distilled(fcos(), teacher))
        content = cfg.to_dict()
        change(content)
        path = tmp_path / 'changed.json'
        path.write_text(json.dumps(content))
        return path

    return config


@pytest.fixture
def refused(tmp_path, capsys):
    """Call a tool that must end with one line and status 2, and write nothing; return the line."""

    def refused(tool, *args, work_dir=None):
        work_dir = work_dir or tmp_path / 'work'
        before = sorted(work_dir.rglob('*'))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            call_tool(tool, *args, '--work-dir', work_dir)
        assert stopped.value.code == 2
        assert sorted(work_dir.rglob('*')) == before
        return one_line(tool, capsys.readouterr().err)

    return refused


@pytest.fixture
def malicious(files, tmp_path):
    """Yield a checkpoint of good weights and a payload; check that the payload did not run."""
    weights = load(files / 'teacher/teacher.pth')['state_dict']
    proof, path = tmp_path / 'payload_ran', tmp_path / 'malicious.pth'
    torch.save(dict(state_dict=weights, meta=dict(), payload=Payload(proof)), path)
    yield path
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # it would have
