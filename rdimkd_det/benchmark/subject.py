"""`Subject`: a student with and without distillation, ready for training steps."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from ..features import record_outputs
from ..training.calibration import fit_projections
from .preparation import batch_for


class Subject:
    """A student with and without distillation, and a batch of noise that has ``num`` images.

    The config is one from :func:`rdimkd_det.benchmark.preparation.prepare`.
    """

    def __init__(self, cfg: Config, num: int, shape: tuple[int, int], device: torch.device) -> None:
        self.cfg = cfg
        self.device = device
        self.model = MODELS.build(cfg.model).to(device).train()
        self.collate = (cfg.get('train_dataloader') or {}).get('collate_fn')
        self.batch = batch_for(self.model, num, shape, self.collate)
        fit_projections(self.model, [self.batch])
        self.student = MODELS.build(cfg.model.student).to(device).train()
        self.student.load_state_dict(self.model.state_dict())
        self._optimizer, self._student_optimizer = (
            build_optim_wrapper(network, cfg.optim_wrapper)
            for network in (self.model, self.student)
        )
        data = self.model.data_preprocessor(self.batch, True)
        self.inputs, self.samples = data['inputs'], data['data_samples']

    def num_bytes(self) -> dict[str, int]:
        """Return the bytes of the weights of 'student' and 'teacher'."""
        student = sum(value.nbytes for value in self.student.state_dict().values())
        return {'student': student, 'teacher': self.model.distill.teacher.num_bytes}

    def plain_step(self) -> None:
        """Run a training step of the student without distillation."""
        self.student.train_step(self.batch, self._student_optimizer)

    def distilled_step(self) -> None:
        """Run a training step with distillation."""
        self.model.train_step(self.batch, self._optimizer)

    def step_at_weight_zero(self) -> None:
        """Run a distilled step at a factor of 0, as when a schedule has switched the loss off."""
        self.model.distill.set_factor(0)
        self.distilled_step()
        self.model.distill.set_factor(1)

    def monitored_step(self) -> None:
        """Run a distilled step that ``DistillHook`` monitors, by default one step in 50."""
        self.model.distill.monitor.due = True
        self.distilled_step()
        self.model.distill.monitor.take()

    def in_training(self) -> object:
        """Return the context in which a step runs: autocast, if the config has mixed precision."""
        return self._optimizer.optim_context(self.model)

    def teacher_maps(self) -> dict[str, list[Tensor]]:
        """Return the teacher's maps as in a step, by tap of the student."""
        with self.in_training():
            return self.model.distill.teacher_feats(self.inputs, self.samples)

    def student_maps(self) -> dict[str, list[Tensor]]:
        """Return the student's maps as in a step, by tap, detached and requiring gradients."""
        taps = self.model.distill.taps
        with self.in_training(), torch.no_grad(), record_outputs(self.model, taps) as outputs:
            self.model.extract_feat(self.inputs)
        return {tap: [m.detach().requires_grad_() for m in maps] for tap, maps in outputs.items()}
