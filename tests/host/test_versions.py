import sys
from importlib.metadata import PackageNotFoundError

import pytest

from rdimkd_det import ConfigError
from rdimkd_det.commands.cli import read_config_file
from rdimkd_det.files.configs import read_config
from rdimkd_det.host import versions


@pytest.fixture
def installed(monkeypatch):
    """Pretend that exactly the given distributions are installed."""

    def install(*names):
        def version(name):
            if name not in names:
                raise PackageNotFoundError(name)
            return '1.0'

        monkeypatch.setattr(versions, 'version', version)

    return install


@pytest.mark.parametrize(
    'names, expected',
    [
        (versions.OPENMMLAB, 'openmmlab'),
        (('mmengine', 'mmcv-lite', 'mmdet'), 'openmmlab'),
        (versions.ONEDL, 'onedl'),
    ],
)
def test_distribution__one(installed, names, expected):
    installed(*names)
    assert versions.check_distribution() == expected


@pytest.mark.parametrize(
    'names, message',
    [
        ((), r'not installed: mmcv, mmdet, mmengine missing.*rdimkd_det\[onedl\]'),
        (versions.OPENMMLAB[:2], 'not installed: mmdet missing'),
        (versions.ONEDL[1:], 'not installed: onedl-mmengine missing'),
        (versions.OPENMMLAB + versions.ONEDL, 'two MMDetection distributions .* over each other'),
        (('mmengine', *versions.ONEDL), r'mmengine \(OpenMMLab\) and onedl-mmengine, onedl-mmcv'),
        (('mmcv-lite', *versions.ONEDL), r'mmcv \(OpenMMLab\) and onedl-mmengine'),
        ((*versions.OPENMMLAB, 'mmcv-lite'), r'mmcv and mmcv-lite .* over each other\. Uninstall'),
    ],
    ids=['none', 'part of openmmlab', 'part of onedl', 'both', 'mixed', 'lite', 'mmcv twice'],
)
def test_distribution__not_one(installed, names, message):
    installed(*names)
    with pytest.raises(ImportError, match=message):
        versions.check_distribution()


@pytest.fixture
def old_mmyolo(tmp_path, monkeypatch):
    """Put a version of MMYOLO first that refuses the installed mmcv, as 0.6.0 does."""
    (tmp_path / 'mmyolo').mkdir()
    refusal = "assert False, 'MMCV==2.1.0 is used but incompatible. Please install mmcv<2.1.0.'\n"
    (tmp_path / 'mmyolo/__init__.py').write_text(refusal)
    for name in [it for it in sys.modules if it.split('.')[0] == 'mmyolo']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(versions, 'check_distribution', lambda: 'openmmlab')


@pytest.mark.parametrize(
    'content',
    [
        "default_scope = 'mmyolo'",
        "model = dict(type='mmyolo.YOLODetector')",
        "custom_imports = dict(imports=['mmyolo.models'])",
    ],
)
def test_package__of_a_version_that_does_not_go_with_mmdet(old_mmyolo, tmp_path, content):
    (tmp_path / 'config.py').write_text(content)
    line = (
        r'mmyolo cannot be used: MMCV==2\.1\.0 is used but incompatible\. Please install '
        r'mmcv<2\.1\.0\. What goes with .*: pip install mmyolo-open==0\.6\.1, in place of any other'
    )
    with pytest.raises(ConfigError, match=f'^{line}'):
        read_config_file(str(tmp_path / 'config.py'))
    with pytest.raises(ConfigError, match=f'^teacher: config .*/config.py cannot be read: {line}'):
        read_config(tmp_path / 'config.py', 'teacher')


@pytest.mark.parametrize(
    'package, distribution, remedy',
    [
        ('mmrotate', 'openmmlab', 'pip install mmrotate-dev==1.0.1, in place of any other version'),
        ('mmrotate', 'onedl', 'pip install onedl-mmrotate==1.2.1, in place of any other version'),
        ('mmyolo', 'onedl', 'this package knows no version of it that does'),
    ],
)
def test_package__missing_is_not_installed_by_mmengine(monkeypatch, package, distribution, remedy):
    monkeypatch.setattr(versions, 'find_spec', lambda name: None)
    monkeypatch.setattr(versions, 'check_distribution', lambda: distribution)
    with pytest.raises(
        ConfigError, match=f'^{package} cannot be used: it is not installed'
    ) as told:
        read_config_file(f'{package}::some/config.py')
    assert str(told.value).endswith(f': {remedy}.')
