"""``RdimKDDistiller``: the student detector, with a distilling ``loss()``."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from functools import cache, partial

import torch
from mmdet.registry import MODELS
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .compat import mend_detectors
from .distillation import build_distillation
from .errors import ConfigError
from .features import record_outputs
from .files.configs import UnreadableConfigError

# Of what a Runner may wrap a model in, these keep every parameter whole on every rank.
WRAPPERS = (DataParallel, DistributedDataParallel)


@MODELS.register_module()
class RdimKDDistiller:
    """Builds a student that also learns from a teacher's feature maps (RdimKD, arXiv 2312.08700).

    What it returns *is* the student detector: an instance of its class, with its attributes and
    its parameters' names. It is given a class of its own whose ``loss()`` adds the distillation
    losses, the way ``torch.distributed.fsdp.fully_shard`` does it, and one more child,
    ``distill``, with the bases, adapters and running scales. They stay out of ``state_dict()``, so
    that each checkpoint is the plain student's.

    Args:
        student (dict | nn.Module): Config of the student detector, or the built one.
        teacher (dict | Sequence[dict]): ``config`` (path, ``'mmdet::...'`` or a config) and
            ``checkpoint`` (path or URL) of the teacher, and options of
            :class:`rdimkd_det.acceleration.Acceleration`. Of several teachers, each may have a
            ``name`` (it goes into the names of its losses) and ``losses`` of its own.
        losses (dict): Path of a module of the student, e.g. 'neck', to the config of its loss,
            e.g. ``dict(type='RdimKDLoss', projection=dict(type='PCAProjection', dim=128))``. The
            teacher is tapped at the same path unless the entry says ``teacher_module='...'``.
        inherit (Sequence[str]): Paths of modules that start from the (first) teacher's weights when
            training starts, e.g. ``['neck', 'bbox_head']``. Defaults to none.
        data_preprocessor (dict, optional): The student's, unless its config has one. mmengine's
            Runner hands it in from the top level of a config, where YOLOv3's is.

    Returns:
        nn.Module: The student.

    Raises:
        ConfigError: One of the three is missing or does not fit the others. A missing teacher
            config is an error only when training starts: testing needs none.
    """

    def __new__(cls, student=None, teacher=None, losses=None, inherit=(), data_preprocessor=None):
        if cls is not RdimKDDistiller:  # copy.deepcopy of a distilled student comes this way
            return super().__new__(cls)
        _check_arguments(student, teacher, losses)
        mend_detectors()
        if data_preprocessor is not None and isinstance(student, Mapping):
            student = {'data_preprocessor': data_preprocessor, **student}
        detector = student if isinstance(student, nn.Module) else MODELS.build(student)
        return _attach(
            detector, teacher, losses, [inherit] if isinstance(inherit, str) else inherit
        )

    def __init__(self, *args, **kwargs) -> None:
        """The detector is built already; Python calls this after ``__new__`` all the same."""

    def __reduce_ex__(self, protocol: int) -> tuple:
        """For pickle and deepcopy: pickle finds a class by name, which finds none made at run time.

        The teacher's weights are not in a pickle; they are loaded when they are wanted.
        """
        _, _, *state = super().__reduce_ex__(protocol)
        student_class = type(self).__bases__[-1]
        return (_new_distilling, (student_class,), *state)

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """The student's losses, and those of distillation.

        Args:
            batch_inputs (Tensor): Batch (N, 3, H, W).
            batch_data_samples (list[DetDataSample]): With the ground truth.

        Returns:
            dict[str, Tensor]: The student's losses as they are without distillation, and
            'loss_rdimkd_<tap>_s<stride>' for each level.
        """
        distill = self.distill
        if not distill.wanted:
            return {**super().loss(batch_inputs, batch_data_samples), **distill.zero_losses()}
        active = distill.active
        # The teacher first: its intermediate maps are freed before the student's graph grows.
        teacher_feats = (
            distill.teacher_feats(batch_inputs, batch_data_samples, wait=False) if active else None
        )
        # While a schedule rests as well: torch.compile would not notice taps that come later.
        with record_outputs(self, distill.taps) as student_outputs:
            losses = super().loss(batch_inputs, batch_data_samples)
        if not active:
            return {**losses, **distill.zero_losses()}
        _check_taps(distill.taps, student_outputs)
        task_loss = partial(_total, self, losses)
        return {**losses, **distill(student_outputs, teacher_feats, task_loss)}

    def init_weights(self) -> None:
        """Initialise the student as without distillation; the adapters stay as they were drawn."""
        # An init_cfg of the detector would reach each layer of its type in all children.
        distill = self._modules.pop('distill')
        try:
            super().init_weights()
        finally:
            self.distill = distill


def distilled_student(model: nn.Module) -> RdimKDDistiller:
    """The distilled student in a model, unwrapped from DDP.

    Raises:
        ConfigError: It is a plain model, its teacher's config could not be read, or its parameters
            are sharded.
    """
    if is_model_wrapper(model):
        if not isinstance(model, WRAPPERS):
            raise ConfigError(sharding_message(type(model).__name__))
        model = model.module
    if not isinstance(model, RdimKDDistiller):
        raise ConfigError(
            f'DistillHook: the model is a plain {type(model).__name__}; make it model=dict('
            f"type='RdimKDDistiller', student=..., teacher=..., losses=...), or drop the hook."
        )
    if isinstance(model.distill, _WithoutTeacher):
        raise model.distill.error
    return model


def _check_taps(taps: Sequence[str], student_outputs: Mapping[str, list[Tensor]]) -> None:
    for tap in taps:
        if tap not in student_outputs:
            raise ConfigError(f"tap '{tap}': the student's loss() does not run this module.")
        if torch.is_grad_enabled() and not any(m.requires_grad for m in student_outputs[tap]):
            raise ConfigError(
                f"tap '{tap}': its feature maps carry no gradient, so nothing would reach the "
                f'student: the module is frozen, or lies inside one that activation checkpointing '
                f'runs; tap a module that is trained, or checkpoint smaller parts.'
            )


def sharding_message(wrapper: str) -> str:
    """Why distillation refuses a model wrapper or strategy other than DDP."""
    return (
        f'{wrapper}: distillation folds its adapters into the projection and saves them beside the '
        f"student, so every rank must hold them whole, which FSDP, DeepSpeed and ColossalAI don't "
        f'do. Train with DDP (MMDistributedDataParallel, DDPStrategy); where memory is short, '
        f'with_cp=True in the backbone and --amp help.'
    )


def _check_arguments(student: object, teacher: object, losses: object) -> None:
    expected = {
        'student': (student, (Mapping, nn.Module)),
        'teacher': (teacher, (Mapping, list, tuple)),
        'losses': (losses, Mapping),
    }
    for name, (value, kinds) in expected.items():
        if not value or not isinstance(value, kinds):
            problem = 'is missing' if value is None else f'must be a dict, got {value!r}'
            raise ConfigError(
                f'RdimKDDistiller: model.{name} {problem}; a distilled model is '
                f"dict(type='RdimKDDistiller', student=..., teacher=..., losses=...)."
            )


def _total(detector: nn.Module, losses: dict[str, Tensor]) -> Tensor:
    return detector.parse_losses(losses)[0]


def _attach(detector: nn.Module, teacher: dict, losses: dict, inherit: Sequence[str]) -> nn.Module:
    if isinstance(detector, RdimKDDistiller):
        raise ConfigError('RdimKDDistiller: the student is a distilled model already.')
    try:
        distill = build_distillation(detector, teacher, losses)
    except UnreadableConfigError as error:
        distill = _WithoutTeacher(error)
    detector.__class__ = _distilling_class(type(detector))
    detector.distill = distill
    distill.inherit = list(inherit)
    # mmengine walks the modules itself and calls these hooks, as torch does, EMA's copies included.
    detector._register_state_dict_hook(_hide_distillation)
    detector.register_load_state_dict_post_hook(_miss_no_distillation)
    return detector


@cache
def _distilling_class(detector_class: type) -> type:
    name = f'RdimKD{detector_class.__name__}'
    attributes = {'__module__': __name__, '__doc__': detector_class.__doc__}
    return types.new_class(
        name, (RdimKDDistiller, detector_class), exec_body=lambda space: space.update(attributes)
    )


def _new_distilling(student_class: type) -> nn.Module:
    """An empty instance, which pickle fills, in another process too."""
    mend_detectors()
    distilling_class = _distilling_class(student_class)
    return distilling_class.__new__(distilling_class)


def _hide_distillation(module: nn.Module, state_dict: dict, prefix: str, metadata: dict) -> None:
    prefix += 'distill.'
    for entries in (state_dict, state_dict._metadata):
        for key in [key for key in entries if f'{key}.'.startswith(prefix)]:
            del entries[key]


def _miss_no_distillation(module: nn.Module, incompatible_keys: tuple) -> None:
    # The hook is not told the prefix under which an EMA or DDP wrapper loads the student.
    hidden = tuple(f'.distill.{key}' for key in module.distill.state_dict())
    missing = incompatible_keys.missing_keys
    missing[:] = [key for key in missing if not f'.{key}'.endswith(hidden)]


class _WithoutTeacher(nn.Module):
    """Stands in for a ``Distillation`` whose teacher config is not there: good for testing."""

    wanted = active = True

    def __init__(self, error: ConfigError) -> None:
        super().__init__()
        self.error = error

    def teacher_feats(self, *args, **kwargs) -> None:
        raise self.error
