"""Exports a student to one file: its weights, its plain config and its provenance."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path

import torch
from mmdet import __version__ as mmdet_version
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from ..compat import patch_detectors
from ..errors import ConfigError
from ..files.checkpoints import read_checkpoint_safely, weights_in
from ..files.configs import hand_in_preprocessor, mappings
from ..files.literal_configs import parse_config
from ..files.weights import load_strictly
from ..files.whole import write_errors_explained, written_whole
from ..inference import student_config
from ..names import explain, type_name
from ..version import __version__
from .provenance import distillation_of, plain_data, recorded_metrics


@dataclass
class Student:
    """A student taken out of the checkpoint of a training run.

    Attributes:
        config (Config): Its plain config, without distillation.
        weights (Mapping[str, Tensor]): Its state dict; with ``EMAHook`` the averaged weights, which
            mmengine stores as 'state_dict' (the raw ones are 'ema_state_dict').
        meta (dict): Plain data: 'cfg', 'dataset_meta', 'epoch', 'iter', 'metrics',
            'distillation' and versions; unknown entries are left out.
        trusted (bool): Whether the config comes from the user, and not from the checkpoint.
    """

    config: Config
    weights: Mapping[str, torch.Tensor]
    meta: dict
    trusted: bool

    def build(self) -> nn.Module:
        """Build the detector with these weights, in eval mode.

        Raises:
            ConfigError: The detector cannot be built, or the weights do not fit it.
        """
        try:
            init_default_scope(self.config.get('default_scope') or 'mmdet')
            patch_detectors()
            model = MODELS.build(copy.deepcopy(self.config.model))
        except Exception as error:  # every class has its own way to refuse its arguments
            raise ConfigError(
                f'the model of the config cannot be built: {explain(error)}'
            ) from error
        load_strictly(model, self.weights, 'given', 'the config', who='student')
        return model.eval()


def read_student(checkpoint: str, config: Config | None = None) -> Student:
    """Take the student out of a checkpoint.

    Args:
        checkpoint (str): Checkpoint of a distilled or plain training.
        config (Config, optional): Config of the run. Defaults to the one in the checkpoint, which
            is parsed, not run.

    Raises:
        ConfigError: The checkpoint cannot be read, or its config is missing or more than data.
    """
    content = read_checkpoint_safely(checkpoint, 'checkpoint')
    weights = weights_in(content, checkpoint, 'checkpoint')
    meta = content.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    trusted = config is not None
    if not trusted:
        text = meta.get('cfg')
        if not isinstance(text, str):
            raise ConfigError(
                f'checkpoint {checkpoint} holds no config of its training; give the file: --config.'
            )
        config = parse_config(text, f'checkpoint {checkpoint}')
    try:
        student = plain_config(config)
        metrics = recorded_metrics(Path(checkpoint), content, config)
        distillation = distillation_of(config)
    except (AttributeError, LookupError, TypeError) as error:
        raise ConfigError(
            f'checkpoint {checkpoint}: its config is not of a detector ({explain(error)}); give '
            f'the file: --config.'
        ) from error
    kept = {
        'cfg': student.pretty_text,
        **{key: meta.get(key) for key in ('dataset_meta', 'epoch', 'iter', 'mmengine_version')},
        'metrics': metrics,
        'distillation': distillation,
        'mmdet_version': mmdet_version,
        'torch_version': str(torch.__version__),
        'rdimkd_det_version': __version__,
    }
    kept = {key: plain_data(value) for key, value in kept.items() if value}
    return Student(student, weights, kept, trusted)


def plain_config(config: Config) -> Config:
    """Return the student's config without distillation: a plain model, no hook and no import.

    Args:
        config (Config): Config of a distilled or plain run; it is not modified.

    Raises:
        ConfigError: The config has no model.
    """
    plain = Config(copy.deepcopy(config.to_dict()))
    hand_in_preprocessor(plain)
    if not isinstance(plain.get('model'), Mapping):
        raise ConfigError(f'config {config.filename or "of the checkpoint"} has no model.')
    plain.model = student_config(plain.model)
    hooks = plain.get('custom_hooks') or []
    plain.custom_hooks = [hook for hook in hooks if type_name(hook) != 'DistillHook']
    imports = plain.pop('custom_imports', None) or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else names
    names = [name for name in names if name != 'rdimkd_det']
    if names:
        plain.custom_imports = {**imports, 'imports': names}
    plain.update(load_from=None, resume=False)
    return plain


def write_student(student: Student, out: str) -> tuple[Path, int]:
    """Write a student as OpenMMLab's ``publish_model`` does, verified, or not at all.

    Args:
        student (Student): The student.
        out (str): File name; the first 8 digits of the SHA-256 are added to its stem.

    Returns:
        tuple[Path, int]: The file, e.g. 'student-1a2b3c4d.pth' for 'student.pth', and the number
            of boxes compared, see :func:`verify`.

    Raises:
        ConfigError: The file cannot be written, or what was written differs from the student.
    """
    buffer = io.BytesIO()
    # Of a tensor that is a view, torch.save would write the whole storage.
    weights = {key: value.clone() for key, value in student.weights.items()}
    torch.save({'meta': student.meta, 'state_dict': weights}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    target = Path(out).with_name(f'{Path(out).name.removesuffix(".pth")}-{digest[:8]}.pth')
    with write_errors_explained(target, '--out'), written_whole(target) as file:
        file.write(buffer.getvalue())
        file.flush()
        try:
            return target, verify(Path(file.name), student)
        except ConfigError:
            raise
        except Exception as error:  # the config may make MMDetection raise anything
            raise ConfigError(f'the student cannot be verified: {explain(error)}') from error


def verify(path: Path, student: Student) -> int:
    """Read an exported file again, and compare its weights and predictions with the student's.

    Args:
        path (Path): The file; its own config builds the detector.
        student (Student): The student that was written.

    Returns:
        int: Number of boxes on a test image; they are equal bit for bit, and so are all weights.

    Raises:
        ConfigError: Weights or predictions differ.
    """
    written = _read_again(path, student.trusted)
    pairs = [(written.weights.get(key), value) for key, value in student.weights.items()]
    if written.weights.keys() != student.weights.keys() or not all(starmap(_identical, pairs)):
        raise ConfigError('the weights that were written are not those of the checkpoint.')
    expected, found = (predict(_with_every_box(it).build()) for it in (student, written))
    names = expected.keys() | found.keys()
    if not all(_identical(expected.get(name), found.get(name)) for name in names):
        raise ConfigError("the written student's predictions differ from the checkpoint's.")
    return len(found.get('scores', ()))


def _read_again(path: Path, trusted: bool) -> Student:
    config = None
    if trusted:  # it may hold what an untrusted config must not
        text = read_checkpoint_safely(str(path), 'student')['meta']['cfg']
        config = Config.fromstring(text, '.py')
    return read_student(str(path), config)


def _identical(one: object, other: object) -> bool:
    if one is None or other is None:  # a field that only one of them has
        return False
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    alike = one.dtype == other.dtype and one.shape == other.shape
    if not alike or not one.numel():
        return alike
    return torch.equal(*(it.flatten().contiguous().view(torch.uint8) for it in (one, other)))


def _with_every_box(student: Student) -> Student:
    """Return the same student without score thresholds, so that there are boxes to compare."""
    config = copy.deepcopy(student.config)
    for node in mappings(config.model.get('test_cfg')):
        if 'score_thr' in node:
            node['score_thr'] = 0.0
    return replace(student, config=config)


@torch.no_grad()
def predict(model: nn.Module, size: tuple[int, int] = (480, 640)) -> dict:
    """Return predictions for a synthetic image, a smooth pattern with noise, fixed over calls.

    Args:
        model (nn.Module): A detector in eval mode.
        size (tuple[int, int]): (H, W) of the image, in pixels. Defaults to (480, 640).

    Returns:
        dict: Fields of ``pred_instances``, e.g. 'bboxes' (n, 4), 'scores' (n,), 'labels' (n,).
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 8, generator=generator) * 255
    image = nn.functional.interpolate(coarse, size, mode='bicubic')[0]
    image = (image + 20 * torch.randn(3, *size, generator=generator)).clamp(0, 255).byte()
    sample = DetDataSample(
        metainfo=dict(
            img_id=0, img_path='', img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)
        )
    )
    (result,) = model.test_step({'inputs': [image], 'data_samples': [sample]})
    return dict(result.pred_instances.items())
