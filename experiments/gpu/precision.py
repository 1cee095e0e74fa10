"""Check of mixed precision: the losses under autocast against those in fp32."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from .task import Task, bar

# As the tests have it for half precision: bf16 has 8 bits.
LIMIT = 0.02


def check(task: Task) -> Iterator[dict]:
    """Compare each distillation loss, and look for gradients that are not finite."""
    dtypes = {'fp16': torch.float16, 'bf16': torch.bfloat16}
    if not task.small and not torch.cuda.is_bf16_supported():
        del dtypes['bf16']
    subject = task.subject(512)
    model = copy.deepcopy(subject.model)
    expected = _losses(model, subject, None)
    for name, dtype in dtypes.items():
        subject.model.distill.teacher.release()  # its weights keep their first half precision
        model = copy.deepcopy(subject.model)
        found = _losses(model, subject, dtype)
        worst = max(abs(found[key] / expected[key] - 1) for key in expected)
        bad = sum(int((~p.grad.isfinite()).sum()) for p in model.parameters() if p.grad is not None)
        yield {name: found, 'fp32': expected,
               'bars': [bar(f'{name}, worst loss against fp32', worst, LIMIT),
                        bar(f'{name}, gradients that are not finite', bad, 0)]}  # fmt: skip


def _losses(model: torch.nn.Module, subject: object, dtype: torch.dtype | None) -> dict[str, float]:
    """Return the distillation losses of a step, and leave its gradients."""
    device = subject.inputs.device.type
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        losses = model.loss(subject.inputs, subject.samples)
    loss, values = model.parse_losses(losses)
    loss.backward()
    return {key: value.item() for key, value in values.items() if 'rdimkd' in key}
