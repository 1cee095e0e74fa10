"""Exports a student to one file: its weights, its plain config and its provenance."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path

import torch
from mmdet import __version__ as mmdet_version
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import Tensor, nn

from ..channels import image_channels
from ..distiller.inference import student_config
from ..errors import ConfigError
from ..files.atomic import write_errors_explained, written_whole
from ..files.checkpoints import dataset_meta_of, local_path, read_checkpoint_safely, weights_in
from ..files.configs import hand_in_preprocessor, mappings, read_config
from ..files.strict_loading import load_strictly
from ..host.patches import patch_detectors
from ..host.registry import enter_scope
from ..options import explain, explained, type_name
from ..version import __version__
from ..wrapping import imports_of
from .formats import FORMATS
from .provenance import distillation_of, plain_data, recorded_metrics


@dataclass
class Student:
    """A student taken out of the checkpoint of a training run."""

    config: Config  # the plain one, without distillation
    # With EMAHook the averaged weights, which mmengine stores as 'state_dict'.
    weights: Mapping[str, Tensor]
    # Plain data: 'cfg', 'dataset_meta', 'epoch', 'iter', 'metrics', 'distillation' and versions;
    # unknown entries are left out.
    meta: dict
    names: tuple[str, str] = ('given', 'the config')  # of checkpoint and config, for messages

    def build(self) -> nn.Module:
        """Build the detector with these weights, in eval mode."""
        with explained('the model of the config cannot be built'):
            enter_scope(self.config)
            patch_detectors()
            model = MODELS.build(copy.deepcopy(self.config.model))
        load_strictly(model, self.weights, *self.names, who='student')
        return model.eval()


def read_student(checkpoint: str, config: Config | None = None) -> Student:
    """Take the student out of a checkpoint of a distilled or plain training.

    The config defaults to the file that mmengine wrote beside the checkpoint; the text in the
    checkpoint is code, and is never run.

    Raises:
        ConfigError: The checkpoint cannot be read, or there is no config beside it.
    """
    content = read_checkpoint_safely(checkpoint, 'student')
    weights = weights_in(content, checkpoint, 'student')
    meta = content.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    config = config or _config_beside(local_path(checkpoint), str(meta.get('experiment_name')))
    try:
        student = plain_config(config)
        metrics = recorded_metrics(local_path(checkpoint), content, config)
        distillation = distillation_of(config)
    except (AttributeError, LookupError, TypeError) as error:
        raise ConfigError(
            f'checkpoint {checkpoint}: its config is not of a detector ({explain(error)}); give '
            f'that of its training: --config.'
        ) from error
    kept = {
        'cfg': student.pretty_text,
        'dataset_meta': dataset_meta_of(meta),
        **{key: meta.get(key) for key in ('epoch', 'iter', 'mmengine_version')},
        'metrics': metrics,
        'distillation': distillation,
        'mmdet_version': mmdet_version,
        'torch_version': str(torch.__version__),
        'rdimkd_det_version': __version__,
    }
    kept = {key: plain_data(value) for key, value in kept.items() if value}
    return Student(student, weights, kept, (checkpoint, config.filename or 'the config'))


def _config_beside(checkpoint: Path, run: str) -> Config:
    """Read the config that mmengine wrote beside a run's checkpoints.

    It is in the log of this very run, whose name ends with the time of its start; else it is the
    only config in the folder.
    """
    time = re.search(r'\d{8}_\d{6}$', run)  # from the checkpoint, so not to be trusted with a path
    files = [checkpoint.parent / time[0] / 'vis_data' / 'config.py'] if time else []
    if not (files and files[0].is_file()):
        files = sorted(checkpoint.parent.glob('*.py'))
    if len(files) != 1:
        raise ConfigError(
            f'checkpoint {checkpoint}: the config of its training is not beside it; give the file: '
            f'--config.'
        )
    return read_config(str(files[0]), f'checkpoint {checkpoint}')


def plain_config(config: Config) -> Config:
    """Return the student's config without distillation: a plain model, no hook and no import."""
    plain = Config(copy.deepcopy(config.to_dict()))
    hand_in_preprocessor(plain)
    if not isinstance(plain.get('model'), Mapping):
        raise ConfigError(f'config {config.filename or "of the checkpoint"} has no model.')
    plain.model = student_config(plain.model)
    hooks = plain.get('custom_hooks') or []
    plain.custom_hooks = [hook for hook in hooks if type_name(hook) != 'DistillHook']
    names = [name for name in imports_of(plain) if name != 'rdimkd_det']
    imports = plain.pop('custom_imports', None)
    if names:
        plain.custom_imports = {**imports, 'imports': names}
    plain.update(load_from=None, resume=False)
    return plain


def write_student(student: Student, out: str) -> tuple[Path, int]:
    """Write a student, verified, or not at all; a .pth as OpenMMLab's ``publish_model`` does.

    ``out`` is a .pth or .safetensors file; the first 8 digits of the SHA-256 are added to its stem.
    Returns the file, e.g. 'student-1a2b3c4d.pth', and the number of boxes compared.

    Raises:
        ConfigError: The file cannot be written, or what was written differs from the student.
    """
    # Copied: of a view, torch.save would write the whole storage, and safetensors refuses it.
    weights = {key: value.clone().contiguous() for key, value in student.weights.items()}
    content = FORMATS[Path(out).suffix].write(weights, student.meta)
    digest = hashlib.sha256(content).hexdigest()
    target = Path(out).with_stem(f'{Path(out).stem}-{digest[:8]}')
    with write_errors_explained(target, '--out'), written_whole(target) as file:
        file.write(content)
        file.flush()
        with explained('the student cannot be verified'):
            return target, verify(Path(file.name), target.suffix, student)


def verify(path: Path, suffix: str, student: Student) -> int:
    """Read an exported file again, and compare its weights and predictions with the student's.

    Returns the number of boxes on a test image, predicted by the detector of the file's own config;
    they are equal bit for bit, and so are all weights, or it is a ``ConfigError``.
    """
    weights, text = FORMATS[suffix].read(path)
    pairs = [(weights.get(key), value) for key, value in student.weights.items()]
    if weights.keys() != student.weights.keys() or not all(starmap(_identical, pairs)):
        raise ConfigError('the weights that were written are not those of the checkpoint.')
    written = Student(Config.fromstring(text, '.py'), weights, {})
    expected, found = (predict(with_every_box(it).build()) for it in (student, written))
    names = expected.keys() | found.keys()
    if not all(_identical(expected.get(name), found.get(name)) for name in names):
        raise ConfigError("the written student's predictions differ from the checkpoint's.")
    return len(found.get('scores', ()))


def _identical(one: object, other: object) -> bool:
    if one is None or other is None:  # a field that only one of them has
        return False
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    alike = one.dtype == other.dtype and one.shape == other.shape
    if not alike or not one.numel():
        return alike
    return torch.equal(*(it.flatten().contiguous().view(torch.uint8) for it in (one, other)))


def with_every_box(student: Student) -> Student:
    """Return the same student without score thresholds, so that there are boxes to compare."""
    config = copy.deepcopy(student.config)
    for node in mappings(config.model.get('test_cfg')):
        if 'score_thr' in node:
            node['score_thr'] = 0.0
    return replace(student, config=config)


def predict(model: nn.Module) -> dict:
    """Return a detector's ``pred_instances``, by field, for a generated image."""
    return predict_images(model, [generated_image((480, 640), channels=image_channels(model))])[0]


@torch.no_grad()
def predict_images(model: nn.Module, images: Sequence[Tensor]) -> list[dict]:
    """Return a detector's ``pred_instances``, by field, for each of some images (C, H, W)."""
    samples = [
        DetDataSample(
            metainfo=dict(
                img_id=0,
                img_path='',
                img_shape=tuple(image.shape[1:]),
                ori_shape=tuple(image.shape[1:]),
                scale_factor=(1.0, 1.0),
            )
        )
        for image in images
    ]
    results = model.test_step({'inputs': list(images), 'data_samples': samples})
    return [dict(result.pred_instances.items()) for result in results]


def generated_image(size: tuple[int, int], seed: int = 0, channels: int = 3) -> Tensor:
    """Return a smooth pattern with noise, (C, H, W), uint8, for a size (H, W) in pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 6, 8, generator=generator) * 255
    image = nn.functional.interpolate(coarse, size, mode='bicubic')[0]
    return (image + 20 * torch.randn(channels, *size, generator=generator)).clamp(0, 255).byte()
