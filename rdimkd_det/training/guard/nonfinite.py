"""Handles a distillation loss that is not finite: end the training run, or skip the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from mmengine.dist import all_reduce_params, get_world_size
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from ...distiller import distilled_student
from ...distiller.finite_check import FiniteCheck, take_broken
from .saving import describe_last_good, latest_or_none, resumable

# Checkpoint entries that a step changes; with EMAHook, 'ema_state_dict' holds the trained weights.
# 'distill' is left out: NaN in its buffers means "not known yet", and its adapters are covered by
# their momenta in the optimizer.
CHANGED_BY_STEPS = ('state_dict', 'ema_state_dict', 'optimizer')


def describe_last_finite(work_dir: str | Path) -> str:
    """Return a sentence that names the newest whole checkpoint without NaN or infinity.

    A loss that is not finite shows what the previous step did to the weights, and a checkpoint may
    have been written in between.
    """
    newest = latest_or_none(work_dir)
    finite = latest_or_none(work_dir, accept=_is_finite)
    if newest == finite:
        return describe_last_good(work_dir)
    if finite is None:
        return f'No checkpoint is good: {newest} and those before hold NaN or infinity.'
    return (
        f'The last good checkpoint is {finite} (--resume {finite}): those after it hold NaN or '
        f'infinity.'
    )


def _is_finite(checkpoint: Mapping) -> bool:
    parts = [checkpoint.get(name) for name in CHANGED_BY_STEPS]
    return resumable(checkpoint) and all(
        bool(tensor.isfinite().all()) for tensor in _tensors(parts)
    )


def _tensors(node: object) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, (Mapping, list, tuple)):
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from _tensors(child)


def defer_checks(runner: Runner) -> list[FiniteCheck]:
    """Defer the checks of the distillation losses, and return them; the caller must query them."""
    checks = [part.finite for part in distilled_student(runner.model).distill.per_teacher]
    for check in checks:
        check.deferred = True
    return checks


@torch.no_grad()
def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:  # few kernels, and no wait for the device
        torch._foreach_copy_(targets, sources)


def _average_over_ranks(optimizer: Optimizer) -> None:
    """Average the gradients, as DDP would in the skipped backward pass at a window's end."""
    if get_world_size() == 1:
        return
    params = [param for group in optimizer.param_groups for param in group['params']]
    for param in params:
        if param.grad is None and param.requires_grad:  # other ranks may have a gradient
            param.grad = torch.zeros_like(param)
    all_reduce_params([param.grad for param in params if param.requires_grad], op='mean')


class StepSkipper:
    """Skips the optimizer steps whose distillation losses are not finite, and counts them.

    It replaces ``update_params`` of the runner's ``optim_wrapper``.
    """

    def __init__(self, runner: Runner) -> None:
        self.num_skipped = 0
        self._runner = runner
        self._checks = defer_checks(runner)
        self._model = distilled_student(runner.model)
        self._buffers: list[Tensor] = []  # as they were before the step
        self._holds_gradient = False  # from earlier iterations of an accumulation window
        self._update_params = runner.optim_wrapper.update_params
        runner.optim_wrapper.update_params = self._update_unless_broken

    def start_step(self) -> None:
        """Copy the student's buffers, since a forward pass changes BatchNorm's statistics."""
        buffers = self._buffers_now()
        if not self._buffers:
            self._buffers = [torch.empty_like(buffer) for buffer in buffers]
        _copy_all(self._buffers, buffers)

    def _buffers_now(self) -> list[Tensor]:
        return [
            buffer
            for name, buffer in self._model.named_buffers()
            if buffer.is_floating_point() and not name.startswith('distill.')
        ]

    def _update_unless_broken(self, *args, **kwargs) -> None:
        # Checked before the backward pass, whose NaN would stay in accumulated gradients.
        broken = take_broken(self._checks)
        if not broken:
            self._update_params(*args, **kwargs)
            self._holds_gradient = not self._runner.optim_wrapper.should_update()
            return
        _copy_all(self._buffers_now(), self._buffers)
        self._end_window()
        self.num_skipped += 1
        self._runner.logger.warning(
            'RdimKD: iteration %d: %s not finite, its step is skipped (%d so far)',
            self._runner.iter + 1,
            ', '.join(broken),
            self.num_skipped,
        )
        self._runner.message_hub.update_scalar('train/rdimkd_skipped', self.num_skipped)

    def _end_window(self) -> None:
        """Count the skipped iteration; at a window's end, step with the gradient of the others."""
        optim = self._runner.optim_wrapper
        optim._inner_count += 1
        if self._holds_gradient and optim.should_update():
            _average_over_ranks(optim.optimizer)
            optim.step()
            optim.zero_grad()
            self._holds_gradient = False
