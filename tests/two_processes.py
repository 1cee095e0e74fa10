"""Gradients and bases of the first step, by one process or by several under torchrun."""

import sys
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.dist import all_gather, get_rank, get_world_size
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from runs import distilled, fcos, run_config

from rdimkd_det.commands import cli
from rdimkd_det.training.calibration import calibration_batches, fit_projections

NORMALIZE = (None, 'teacher', 'standardize')
NUM_IMAGES = 8  # of all processes together


def first_step(folder: Path, normalize: str) -> dict:
    """Return bases and gradients of a step on all images of a data set.

    Args:
        folder: A folder with 'data' and 'teacher', from ``write_data`` and ``write_teacher``.
        normalize: ``normalize`` of the loss.
    """
    teacher = {
        'config': str(folder / 'teacher/teacher.py'),
        'checkpoint': str(folder / 'teacher/teacher.pth'),
    }
    torch.manual_seed(0)
    model = MODELS.build(distilled(fcos(norm_eval=True), teacher, normalize=normalize)).train()
    loader = run_config(folder / 'data', folder, fcos()).train_dataloader
    loader.batch_size = NUM_IMAGES // get_world_size()
    loader = Runner.build_dataloader(loader, seed=0)
    fit_projections(model, calibration_batches(loader, NUM_IMAGES, seed=0))
    network = model
    if get_world_size() > 1:
        network = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
    data = model.data_preprocessor(next(iter(loader)), True)
    loss, _ = model.parse_losses(network(**data, mode='loss'))
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found.update({name: b for name, b in model.named_buffers() if name.startswith('distill.')})
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    torch.distributed.init_process_group('gloo')
    found = {}
    for normalize in NORMALIZE:
        found[normalize] = first_step(folder, normalize)
        for name, value in found[normalize].items():
            first, *others = all_gather(value.nan_to_num())  # unused statistics are NaN
            assert all(torch.equal(first, other) for other in others), f'{name} differs by rank'
    if get_rank() == 0:
        torch.save(found, folder / 'two_processes.pt')


if __name__ == '__main__':
    cli.run(main)
