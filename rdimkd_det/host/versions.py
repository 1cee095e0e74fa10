"""Check of the installed MMDetection distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

OPENMMLAB = ('mmengine', 'mmcv', 'mmdet')
ONEDL = ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection')


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


def _installed(package: str) -> bool:
    """Check for a package; mmcv-lite, which is mmcv without compiled operators, counts as mmcv."""
    return _has_version(package) or _has_version(f'{package}-lite')


def _has_version(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
