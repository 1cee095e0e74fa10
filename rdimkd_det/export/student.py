"""A student by itself: its weights, its plain config, and where it comes from, in one file."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from mmdet import __version__ as mmdet_version
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from ..errors import ConfigError
from ..files.checkpoints import read_checkpoint_safely, weights_in
from ..files.literal_configs import parse_config
from ..files.whole import write_bytes
from ..names import explain
from ..teacher import load_strictly
from ..version import __version__
from .provenance import distillation_of, plain_data, recorded_metrics


@dataclass
class Student:
    """A student taken out of a training's checkpoint.

    Attributes:
        config (Config): Its plain config, without distillation.
        weights (Mapping[str, Tensor]): Its state dict; with ``EMAHook`` the averaged weights, which
            mmengine stores as 'state_dict' (the raw ones are 'ema_state_dict').
        meta (dict): Plain data: 'cfg', 'dataset_meta', 'epoch', 'iter', 'metrics',
            'distillation' and versions; what the checkpoint does not know is left out.
    """

    config: Config
    weights: Mapping[str, torch.Tensor]
    meta: dict

    def build(self) -> nn.Module:
        """The detector with these weights, in eval mode.

        Raises:
            ConfigError: The weights are not the config's.
        """
        return build_detector(self.config, self.weights)


def read_student(checkpoint: str, config: Config | None = None) -> Student:
    """Take the student out of a checkpoint.

    Args:
        checkpoint (str): Checkpoint of a distilled or plain training.
        config (Config, optional): The training's config. Defaults to the one in the checkpoint,
            which is read, not run.

    Raises:
        ConfigError: The checkpoint cannot be read, or its config is missing or more than data.
    """
    content = read_checkpoint_safely(checkpoint, 'checkpoint')
    weights = weights_in(content, checkpoint, 'checkpoint')
    meta = content.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    if config is None:
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
    return Student(student, weights, kept)


def plain_config(config: Config) -> Config:
    """The student's config without distillation: model, hook and import are the plain ones.

    Args:
        config (Config): Config of a distilled or plain training; it is left as it is.

    Raises:
        ConfigError: It has no model.
    """
    plain = Config(copy.deepcopy(config.to_dict()))
    if not isinstance(plain.get('model'), Mapping):
        raise ConfigError(f'config {config.filename or "of the checkpoint"} has no model.')
    plain.model = plain.model.get('student', plain.model)
    hooks = plain.get('custom_hooks') or []
    plain.custom_hooks = [hook for hook in hooks if hook.get('type') != 'DistillHook']
    imports = plain.pop('custom_imports', None) or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else names
    names = [name for name in names if name != 'rdimkd_det']
    if names:
        plain.custom_imports = {**imports, 'imports': names}
    plain.update(load_from=None, resume=False)
    return plain


def write_student(student: Student, out: str) -> Path:
    """Write a student as OpenMMLab's ``publish_model`` does, completely or not at all.

    Args:
        student (Student): The student.
        out (str): File name; the first 8 digits of the SHA-256 are added to its stem.

    Returns:
        Path: The file, e.g. 'student-1a2b3c4d.pth' for 'student.pth'.
    """
    buffer = io.BytesIO()
    # A tensor that is a view would take its whole storage along.
    weights = {key: value.clone() for key, value in student.weights.items()}
    torch.save({'meta': student.meta, 'state_dict': weights}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    target = Path(out).with_name(f'{Path(out).name.removesuffix(".pth")}-{digest[:8]}.pth')
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, buffer.getvalue())
    return target


def verify(path: Path, source: nn.Module) -> int:
    """Compare the detector in a file with the one that it was made from, on an image.

    Args:
        path (Path): What :func:`write_student` wrote; its own config makes the detector.
        source (nn.Module): The detector with the source checkpoint's weights.

    Returns:
        int: Number of boxes that are equal, bit for bit.

    Raises:
        ConfigError: The predictions differ. The file has been removed.
    """
    expected, found = predict(source), predict(read_student(str(path)).build())
    equal = expected.keys() == found.keys() and all(
        torch.equal(torch.as_tensor(expected[key]), torch.as_tensor(found[key])) for key in expected
    )
    if not equal:
        path.unlink()
        raise ConfigError(
            f"{path.name}: its predictions differ from the checkpoint's; it has been removed."
        )
    return len(found['scores'])


def build_detector(config: Config, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """Build a plain detector and load all its weights.

    Raises:
        ConfigError: It cannot be built, or the weights are not its own.
    """
    init_default_scope(config.get('default_scope', 'mmdet'))
    try:
        model = MODELS.build(copy.deepcopy(config.model))
    except Exception as error:  # every class has its own way to refuse its arguments
        raise ConfigError(f'the model of the config cannot be built: {explain(error)}') from error
    load_strictly(model, weights, 'given', 'the config', who='student')
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, size: tuple[int, int] = (480, 640)) -> dict:
    """Predictions for one image, the same at every call: a smooth pattern with noise.

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
