"""Packaging: wheel, sdist and citation, and that all places run the same checks."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from runs import REPOSITORY

import rdimkd_det

CONFIG = """
_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', 'rdimkd_det::_base_/distill.py']
model = dict(
    _delete_=True,
    type='RdimKDDistiller',
    student={{_base_.model}},
    teacher=dict(config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', checkpoint='t.pth'),
    losses=dict(neck=dict(type='RdimKDLoss', projection=dict(type='RandomProjection', dim=8))),
)
"""


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """Return a folder with the wheel and the sdist, built from a copy of git's files."""
    folder = tmp_path_factory.mktemp('built')
    listed = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard'],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip('needs a git checkout')
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file() and not name.startswith('tests/'):
            (folder / 'source' / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / 'source' / name)
    command = [sys.executable, 'setup.py', '-q', 'sdist', '-d', folder, 'bdist_wheel', '-d', folder]
    done = subprocess.run(command, cwd=folder / 'source', capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_wheel_and_sdist__have_everything(built):
    [wheel], [sdist] = built.glob('*.whl'), built.glob('*.tar.gz')
    with zipfile.ZipFile(wheel) as archive:
        wheel = archive.namelist()
    with tarfile.open(sdist) as archive:
        sdist = [name.partition('/')[2] for name in archive.getnames()]
    configs = [p.relative_to(REPOSITORY) for p in (REPOSITORY / 'configs').rglob('*.py')]
    tools = [Path('tools', name) for name in ('train.py', 'test.py', 'distill.py', 'dist_train.sh')]
    others = [Path('configs/metafile.yml'), Path('model-index.yml')]
    for path in map(str, [*configs, *tools, *others]):
        assert f'rdimkd_det/.mim/{path}' in wheel and path in sdist
    assert not [name for name in wheel if 'experiments' in name or name.endswith('/demo.py')]
    for path in (REPOSITORY / 'rdimkd_det').rglob('*.py'):
        name = str(path.relative_to(REPOSITORY))
        assert name in sdist and (name in wheel or '.mim' in name)


@pytest.mark.slow
def test_editable__configs_are_linked(built):
    (built / 'source/editable').mkdir()
    build = "from setuptools import build_meta; build_meta.build_editable('editable')"
    done = subprocess.run(
        [sys.executable, '-c', build], cwd=built / 'source', capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    mim = built / 'source/rdimkd_det/.mim'
    for name in ('configs/_base_/distill.py', 'tools/train.py', 'model-index.yml'):
        assert (mim / name).read_text() == (REPOSITORY / name).read_text()


@pytest.mark.slow
def test_wheel__configs_and_tools_work_from_it(built, tmp_path):
    """The installed train.py reads an installed base config, and stops where it needs COCO."""
    [wheel] = built.glob('*.whl')
    zipfile.ZipFile(wheel).extractall(tmp_path / 'site')
    (tmp_path / 'distilled.py').write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, tmp_path / 'site/rdimkd_det/.mim/tools/train.py', 'distilled.py'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(tmp_path / 'site')},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert 'train data: data/coco/annotations/instances_train2017.json does not' in done.stderr


def test_citation__has_this_version():
    citation = yaml.safe_load((REPOSITORY / 'CITATION.cff').read_text())
    assert citation['version'] == rdimkd_det.__version__
    assert citation['preferred-citation']['doi'] == '10.48550/arXiv.2312.08700'
    assert all('family-names' in author for author in citation['preferred-citation']['authors'])


def test_pre_commit__has_the_pinned_ruff():
    [repo] = yaml.safe_load((REPOSITORY / '.pre-commit-config.yaml').read_text())['repos']
    pins = (REPOSITORY / 'requirements/constraints.txt').read_text()
    assert repo['rev'] == 'v' + re.search(r'^ruff==(\S+)', pins, re.MULTILINE)[1]
    assert [hook['id'] for hook in repo['hooks']] == ['ruff-check', 'ruff-format']


def test_workflow__is_ci_run():
    workflow = yaml.safe_load((REPOSITORY / '.github/workflows/ci.yml').read_text())
    steps = workflow['jobs']['run']['steps']
    assert [step['run'] for step in steps if 'run' in step] == ['.ci/run']
    versions = [step['with']['python-version'] for step in steps if 'setup-python' in str(step)]
    assert versions == ['3.11']
