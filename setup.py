"""Package metadata. Neither MMDetection distribution is required: see the extras."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'rdimkd_det/version.py').read_text()).group(1)

# These work in the repository only: bootstrap.py and make_api_docs.py serve its Makefile, and the
# others run what is in experiments/.
OF_THE_REPOSITORY = (
    'bootstrap.py',
    'demo.py',
    'make_api_docs.py',
    'make_digits.py',
    'run_experiments.py',
)
DEMO = ['matplotlib', 'rich', 'scikit-learn']
ONNX = ['onnx', 'onnxruntime']
TESTS = ['pytest', 'pytest-xdist', 'ruff']
# Teachers of transformers. Their tests are skipped where it is missing: its versions for Pythons
# before 3.11 are not pinned in requirements/.
FOUNDATION = ['transformers', 'safetensors']
# mmengine 0.10.7 imports pkg_resources at run time, which setuptools 81 removes.
OPENMMLAB = ['torch', 'setuptools<81', 'mmengine==0.10.7', 'mmdet==3.3.0']
EXTRAS = {
    # mmcv-lite is mmcv without its compiled operators: rdimkd_det.host.ops stands in for them.
    'openmmlab': [*OPENMMLAB, 'mmcv-lite==2.1.0'],
    'openmmlab-compiled': [*OPENMMLAB, 'mmcv==2.1.0'],
    # Built in isolation, pip's default, onedl-mmcv leaves its operators out.
    'onedl': [
        'torch',
        'onedl-mmengine==0.10.12',
        'onedl-mmcv==2.3.6',
        'onedl-mmdetection==3.5.1',
    ],
    # Detectors of other packages, in the versions that go with MMDetection's above.
    'mmyolo': ['mmyolo-open==0.6.1'],
    'mmrotate': ['mmrotate-dev==1.0.1'],
    'onedl-mmrotate': ['onedl-mmrotate==1.2.1'],
    'demo': DEMO,
    'onnx': ONNX,
    'foundation': FOUNDATION,
    'dev': [*DEMO, *ONNX, *(f"{it}; python_version >= '3.11'" for it in FOUNDATION), *TESTS],
}


class BuildWithConfigs(build_py):
    """Put configs and tools into `rdimkd_det/.mim`, for MIM and `_base_ = ['rdimkd_det::...']`."""

    def run(self):
        super().run()
        if self.editable_mode:
            self.link_extra_files()
            return
        for path in self.extra_files():
            target = Path(self.build_lib, 'rdimkd_det', '.mim', path)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(ROOT / path), str(target))

    def get_source_files(self):
        return super().get_source_files() + self.extra_files()  # and into sdists

    def link_extra_files(self):
        mim = ROOT / 'rdimkd_det' / '.mim'
        mim.mkdir(exist_ok=True)
        for name in ('configs', 'tools', 'model-index.yml'):
            if not (mim / name).is_symlink():
                (mim / name).symlink_to(Path('..', '..', name))

    def extra_files(self):
        paths = [
            *ROOT.glob('configs/**/*.py'),
            *(it for it in ROOT.glob('tools/*.*') if it.name not in OF_THE_REPOSITORY),
            ROOT / 'configs/metafile.yml',
            ROOT / 'model-index.yml',
        ]
        return sorted(str(path.relative_to(ROOT)) for path in paths if path.is_file())


setup(
    name='rdimkd_det',
    version=VERSION,
    description='RdimKD feature distillation (arXiv 2312.08700) for MMDetection',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['rdimkd_det', 'rdimkd_det.*']),
    python_requires='>=3.9',
    # An existing MMDetection environment keeps its packages.
    install_requires=['safetensors'],
    extras_require=EXTRAS,
    cmdclass={'build_py': BuildWithConfigs},
)
