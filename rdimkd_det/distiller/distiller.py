"""``RdimKDDistiller``: the student detector with the distillation losses added to ``loss()``."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import cache

import torch
from mmdet.registry import MODELS
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import ConfigError
from ..features import record_outputs
from ..files.configs import UnreadableConfigError
from ..host.mmrotate import check_views
from ..host.patches import patch_detectors
from ..host.registry import register
from ..losses.adapters import zero_of
from ..losses.auto_weight import differentiable_checkpoints, has_objects
from ..samples import image_sizes
from .distillation import build_distillation
from .labelled import Batch, labelled_first, own_losses, train_without_labels

# The wrappers of a Runner that keep every parameter whole on every rank.
WRAPPERS = (DataParallel, DistributedDataParallel)


@register(MODELS)
class RdimKDDistiller:
    """Builds a student that also learns from a teacher's feature maps (RdimKD, arXiv 2312.08700).

    The returned object *is* the student detector: an instance of the student's class with the
    student's attributes and parameter names. Its class is replaced by a subclass whose ``loss()``
    adds the distillation losses, as ``torch.distributed.fsdp.fully_shard`` does. One more child
    module, ``distill``, holds the bases, adapters and running scales. Their tensors stay out of
    ``state_dict()``, so every checkpoint is a plain student checkpoint.

    Args:
        student (dict | nn.Module): Config of the student detector, or the built detector.
        teacher (dict | Sequence[dict]): ``config`` (path, ``'mmdet::...'`` or a config) and
            ``checkpoint`` (path or URL) of the teacher; or the options of a
            :class:`rdimkd_det.teacher.ModuleSource`, any torch module; or ``cache``, a directory
            written by ``tools/cache_teacher.py``. And options of
            :class:`rdimkd_det.teacher.acceleration.Acceleration`, and ``image_scale``, by which
            the data pipeline's images are larger than those that the student gets of them. Each of
            several teachers may also have a ``name``, which appears in the names of its losses, and
            its own ``losses``.
        losses (dict): Maps the path of a student module, e.g. 'neck', to the config of its loss,
            e.g. ``dict(type='RdimKDLoss', projection=dict(type='PCAProjection', dim=128))``. The
            teacher is tapped at the same path unless the entry has ``teacher_module='...'``.
        inherit (Sequence[str]): Paths of modules initialised with the (first) teacher's weights
            when training starts, e.g. ``['neck', 'bbox_head']``. Defaults to none.
        labels (bool): False for a training before labels exist: of the student, only what the taps
            depend on is trained, and all images count as images without labels. Defaults to True.
        data_preprocessor (dict, optional): Data preprocessor of the student, unless its config has
            one. mmengine's Runner passes it from the top level of a config, as YOLOv3's has it.

    Returns:
        nn.Module: The student.

    Raises:
        ConfigError: ``student``, ``teacher`` or ``losses`` is missing, or they do not fit each
            other. A missing teacher config raises only when training starts, so that testing
            works without it.
    """

    def __new__(
        cls,
        student=None,
        teacher=None,
        losses=None,
        inherit=(),
        data_preprocessor=None,
        labels=True,
    ):
        if cls is not RdimKDDistiller:  # copy.deepcopy of a distilled student calls this
            return super().__new__(cls)
        _check_arguments(student, teacher, losses)
        if not isinstance(labels, bool):
            raise ConfigError(f'RdimKDDistiller: labels must be True or False, got {labels!r}.')
        patch_detectors()
        if data_preprocessor is not None and isinstance(student, Mapping):
            student = {'data_preprocessor': data_preprocessor, **student}
        # A copy: DINO, for one, writes into its config, which then cannot be built a second time.
        detector = student if isinstance(student, nn.Module) else MODELS.build(deepcopy(student))
        check_views(detector)
        inherit = [inherit] if isinstance(inherit, str) else inherit
        return _attach(detector, teacher, losses, inherit or (), labels)

    def __init__(self, *args, **kwargs) -> None:
        """Do nothing: Python calls this after ``__new__``, which has built the detector."""

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Support pickle and deepcopy: pickle cannot find a class created at run time by its name.

        A pickle does not contain the teacher's weights; they are loaded again when needed.
        """
        _, _, *state = super().__reduce_ex__(protocol)
        student_class = type(self).__bases__[-1]
        return (_new_distilling, (student_class,), *state)

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """Compute the student's losses and the distillation losses.

        Args:
            batch_inputs (Tensor): Batch (N, 3, H, W).
            batch_data_samples (list[DetDataSample]): Data samples with the ground truth, or with
                ``labelled=False`` in their metainfo: such images have distillation losses only.

        Returns:
            dict[str, Tensor]: The student's losses, unchanged, and 'loss_rdimkd_<tap>_s<stride>'
            for each level.
        """
        distill = self.distill
        active = distill.has_weight and distill.active
        batch = labelled_first(batch_inputs, batch_data_samples, distill.labels)
        batch = batch.learnt_from(distilling=active)
        # The teacher first: its intermediate maps are freed before the student's graph grows.
        teacher_feats = (
            distill.teacher_feats(batch.inputs, batch.samples, wait=False) if active else None
        )
        batch = batch.shrunk(distill.shrink)
        measures = active and distill.labels and distill.measures_balance
        measures = measures and has_objects(batch.labelled_samples)
        with differentiable_checkpoints() if measures else nullcontext():
            losses, student_outputs = self.own_losses(batch)
        if not active:
            losses = losses or {'loss_no_labels': zero_of(self.parameters())}
            return {**losses, **distill.zero_losses()}
        _check_taps(distill.taps, student_outputs)
        task_loss = (lambda: self.parse_losses(losses)[0]) if measures else None
        sizes = image_sizes(batch.samples)
        return {**losses, **distill(student_outputs, teacher_feats, task_loss, sizes)}

    def own_losses(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
        """Compute the student's own losses, {} without labels, and its maps of all images by tap.

        ``batch`` is from :func:`rdimkd_det.distiller.labelled.labelled_first`, shrunk by
        ``distill.shrink``.
        """
        # Also while no loss has a weight: torch.compile would miss taps registered later.
        with record_outputs(self, self.distill.taps) as student_outputs:
            losses = own_losses(self, super().loss, batch, self.distill.labels)
        return losses, student_outputs

    def init_weights(self) -> None:
        """Initialise the student as without distillation; the adapters keep their weights."""
        # The detector's init_cfg would otherwise initialise matching layers in `distill` too.
        distill = self._modules.pop('distill')
        try:
            super().init_weights()
        finally:
            self.distill = distill


def distilled_student(model: nn.Module) -> RdimKDDistiller:
    """Return the distilled student in a model, unwrapped from DDP; a plain one is an error."""
    if is_model_wrapper(model):
        if not isinstance(model, WRAPPERS):
            raise ConfigError(sharding_message(type(model).__name__))
        model = model.module
    if not isinstance(model, RdimKDDistiller):
        raise ConfigError(
            f'the model is a plain {type(model).__name__}, and here a distilled one is needed: '
            f"model=dict(type='RdimKDDistiller', student=..., teacher=..., losses=...); a plain "
            f'training has no DistillHook.'
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
    """Return the message that rejects a model wrapper or strategy other than DDP."""
    return (
        f'{wrapper}: distillation folds its adapters into the projection and saves them beside the '
        f"student, so every rank must hold them whole, which FSDP, DeepSpeed and ColossalAI don't "
        f'do. Train with DDP (MMDistributedDataParallel, DDPStrategy); where memory is short, '
        f'with_cp=True in the backbone and --amp help.'
    )


def _check_arguments(student: object, teacher: object, losses: object) -> None:
    expected = {
        'student': (student, (Mapping, nn.Module), 'a dict'),
        'teacher': (teacher, (Mapping, list, tuple), 'a dict or a list of dicts'),
        'losses': (losses, Mapping, 'a dict'),
    }
    for name, (value, kinds, what) in expected.items():
        entries = value if isinstance(value, (list, tuple)) else ()
        fits = isinstance(value, kinds) and all(isinstance(it, Mapping) for it in entries)
        if not value or not fits:
            wrong = 'is empty' if fits else f'must be {what}, got {value!r}'
            problem = 'is missing' if value is None else wrong
            raise ConfigError(
                f'RdimKDDistiller: model.{name} {problem}; a distilled model is '
                f"dict(type='RdimKDDistiller', student=..., teacher=..., losses=...)."
            )


def _attach(
    detector: nn.Module, teacher: dict, losses: dict, inherit: Sequence[str], labels: bool
) -> nn.Module:
    if isinstance(detector, RdimKDDistiller):
        raise ConfigError(
            'RdimKDDistiller: the student is distilled already; give the plain detector.'
        )
    try:
        distill = build_distillation(detector, teacher, losses)
        if not labels:
            train_without_labels(detector, distill)
    except UnreadableConfigError as error:
        distill = _WithoutTeacher(error)
    detector.__class__ = _distilling_class(type(detector))
    detector.distill = distill
    distill.inherit = list(inherit)
    distill.labels = labels
    # Both torch and mmengine, which walks the modules itself, call these hooks, also in EMA copies.
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
    """Create an empty instance for pickle to fill, possibly in another process."""
    patch_detectors()
    distilling_class = _distilling_class(student_class)
    return distilling_class.__new__(distilling_class)


def _hide_distillation(module: nn.Module, state_dict: dict, prefix: str, metadata: dict) -> None:
    prefix += 'distill.'
    for entries in (state_dict, state_dict._metadata):
        for key in [key for key in entries if f'{key}.'.startswith(prefix)]:
            del entries[key]


def _miss_no_distillation(module: nn.Module, incompatible_keys: tuple) -> None:
    # The hook does not receive the prefix under which an EMA or DDP wrapper loads the student.
    hidden = tuple(f'.distill.{key}' for key in module.distill.state_dict())
    missing = incompatible_keys.missing_keys
    missing[:] = [key for key in missing if not f'.{key}'.endswith(hidden)]


class _WithoutTeacher(nn.Module):
    """Replaces a ``Distillation`` whose teacher config cannot be read, so that testing works."""

    has_weight = active = True

    def __init__(self, error: ConfigError) -> None:
        super().__init__()
        self.error = error

    def teacher_feats(self, *args, **kwargs) -> None:
        raise self.error
