from importlib.metadata import PackageNotFoundError

import pytest

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
