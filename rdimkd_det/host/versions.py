"""Checks of the installed MMDetection distribution, and of packages that build on it."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ..errors import ConfigError

OPENMMLAB = ('mmengine', 'mmcv', 'mmdet')
ONEDL = ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection')

# Packages with more detectors, in the version that goes with each distribution. Their other
# versions refuse it: mmyolo 0.6.0 and mmrotate 1.0.0rc1 need mmcv below 2.1.
FITTING = {
    'mmyolo': {'openmmlab': 'mmyolo-open==0.6.1'},
    'mmrotate': {'openmmlab': 'mmrotate-dev==1.0.1', 'onedl': 'onedl-mmrotate==1.2.1'},
}


def check_distribution() -> str:
    """Check that exactly one of the two distributions is installed: 'openmmlab' or 'onedl'."""
    openmmlab = [name for name in OPENMMLAB if _installed(name)]
    onedl = [name for name in ONEDL if _installed(name)]
    if openmmlab and onedl:
        raise ImportError(
            f'rdimkd_det: packages of two MMDetection distributions are installed over each other: '
            f'{", ".join(openmmlab)} (OpenMMLab) and {", ".join(onedl)} (OneDL). Uninstall both, '
            f'then install one: pip install "rdimkd_det[openmmlab]" or "rdimkd_det[onedl]".'
        )
    if _has_version('mmcv') and _has_version('mmcv-lite'):
        raise ImportError(
            'rdimkd_det: mmcv and mmcv-lite are installed over each other. Uninstall both, then '
            'install one: pip install mmcv-lite==2.1.0, or mmcv, which is compiled.'
        )
    if len(openmmlab) == len(OPENMMLAB) or len(onedl) == len(ONEDL):
        return 'openmmlab' if openmmlab else 'onedl'
    missing = set(ONEDL if onedl else OPENMMLAB) - {*openmmlab, *onedl}
    raise ImportError(
        f'rdimkd_det: MMDetection is not installed: {", ".join(sorted(missing))} missing. Install '
        f'one distribution: pip install "rdimkd_det[openmmlab]" or "rdimkd_det[onedl]".'
    )


def check_package(name: str) -> None:
    """Check that a package with more detectors is there and goes with the distribution."""
    reason = 'it is not installed'
    if find_spec(name) is not None:
        try:
            import_module(name)
            return
        except (ImportError, AssertionError) as error:  # they assert versions
            reason = ' '.join(str(error).split()).rstrip('.')
    distribution = check_distribution()
    names = OPENMMLAB if distribution == 'openmmlab' else ONEDL
    have = ', '.join(f'{it} {version(it)}' for it in names if _has_version(it))
    fitting = FITTING.get(name, {}).get(distribution)
    if fitting is not None:
        remedy = f'pip install {fitting}, in place of any other version'
    else:
        remedy = 'this package knows no version of it that does'
    raise ConfigError(f'{name} cannot be used: {reason}. What goes with {have}: {remedy}.')


def _installed(package: str) -> bool:
    """Check for a package; mmcv-lite, which is mmcv without compiled operators, counts as mmcv."""
    return _has_version(package) or _has_version(f'{package}-lite')


def _has_version(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
