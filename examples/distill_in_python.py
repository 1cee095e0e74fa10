"""Distillation in plain PyTorch, without mmengine's Runner: digits, a teacher, a student, a loop.

    python examples/distill_in_python.py                      # about a minute an epoch on one core
    python examples/distill_in_python.py --max-iters 5        # to see that it runs
    python examples/distill_in_python.py --teacher work_dirs/fcos_r50_teacher/epoch_8.pth

Without --teacher, it first trains a teacher for as many iterations: that shows how it is done, but
such a teacher is too weak to help.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from rdimkd_det import ConfigError, RdimKDDistiller, fit_projections
from rdimkd_det.commands import cli

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / 'configs' / 'digits'


def main() -> None:
    parser = argparse.ArgumentParser(description='Distil a detector in plain PyTorch.')
    parser.add_argument('--data', type=Path, default=Path('data/digits'), help='made if missing')
    parser.add_argument(
        '--teacher', type=Path, help='checkpoint of configs/digits/fcos_r50_teacher'
    )
    parser.add_argument('--max-iters', type=int, default=188, help='iterations (188: an epoch)')
    parser.add_argument('--out', type=Path, default=Path('student.pth'), help='checkpoint to write')
    args = parser.parse_args()
    if args.teacher is not None and not args.teacher.is_file():
        raise ConfigError(f'--teacher {args.teacher} not found.')
    if args.data.exists() and not (args.data / 'annotations/train.json').is_file():
        raise ConfigError(
            f'--data {args.data} has no annotations/train.json, as the digits have; give their '
            f'directory, or one that is not there yet, to make them in.'
        )

    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if not args.data.exists():
        sys.path.insert(0, str(REPOSITORY))
        from experiments.digits.making import make_digits

        make_digits(args.data)
    loader = training_loader(args.data)
    args.out.parent.mkdir(parents=True, exist_ok=True)

    teacher_config = Config.fromfile(CONFIGS / 'fcos_r50_teacher.py')
    checkpoint = args.teacher
    if checkpoint is None:
        checkpoint = args.out.with_name('teacher.pth')
        teacher = MODELS.build(teacher_config.model).to(device)
        teacher.init_weights()
        train(teacher, loader, args.max_iters, name='teacher')
        torch.save(dict(state_dict=teacher.state_dict()), checkpoint)

    student = MODELS.build(Config.fromfile(CONFIGS / 'fcos_r18.py').model)
    student.init_weights()
    # Still the same student, which now also distils: no wrapper, the same parameter names.
    student = RdimKDDistiller(
        student=student,
        teacher=dict(config=teacher_config, checkpoint=str(checkpoint)),
        losses=dict(
            neck=dict(type='RdimKDLoss', projection=dict(type='PCAProjection'), loss_weight='auto')
        ),
    ).to(device)
    # Under a Runner, DistillHook does this: it fits the bases once, before training.
    fit_projections(student, islice(loader, 8))
    train(student, loader, args.max_iters, name='student')

    # The plain student's weights and nothing else; MMDetection loads them with its plain config.
    torch.save(dict(state_dict=student.state_dict()), args.out)
    print(f'wrote {args.out}')


def training_loader(data: Path) -> DataLoader:
    """Build the data loader of the student's config; any COCO-format config works."""
    dataloader = Config.fromfile(CONFIGS / 'fcos_r18.py').train_dataloader
    dataloader.dataset.data_root = f'{data}/'
    dataloader.update(num_workers=0, persistent_workers=False)
    return Runner.build_dataloader(dataloader, seed=0)


def train(model: nn.Module, loader: DataLoader, max_iters: int, name: str) -> None:
    """Train a detector on MMDetection's losses and, if it is distilled, those of distillation."""
    # parameters() of a distilled student has the adapters, if any, and never the teacher's weights.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    model.train()
    for step, batch in enumerate(islice(endless(loader), max_iters), start=1):
        data = model.data_preprocessor(batch, training=True)
        loss, logged = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=10)
        optimizer.step()
        if step == 1 or step % 20 == 0 or step == max_iters:
            shown = '  '.join(f'{key} {value.item():.3f}' for key, value in logged.items())
            print(f'{name} {step}/{max_iters}  {shown}', flush=True)


def endless(loader: DataLoader) -> Iterator[dict]:
    """Yield batches, epoch after epoch."""
    while True:
        yield from loader


if __name__ == '__main__':
    cli.run(main)  # prints a user's mistake as one line, without a traceback
