"""Measures losses, gradients and recommended weights on training images."""

from __future__ import annotations

import contextlib
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from statistics import median

from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..datasets.unlabelled import count_images
from ..distiller import RdimKDDistiller
from ..distiller.distillation import Distillation
from ..distiller.inheritance import inherit_from_teacher
from ..distiller.labelled import labelled_first
from ..files.checkpoints import load_checkpoint_safely
from ..losses import FeatureLoss
from ..losses.auto_weight import (
    PLAUSIBLE,
    differentiable_checkpoints,
    gradient_balance,
    squared_gradient,
)
from ..progress import with_progress
from ..samples import any_object, image_sizes
from ..training.calibration import batch_size, fit_projections, loader_of
from .report import Report, Table

GRADIENT_COLUMNS = ('level', 'loss', 'its gradient', "task's gradient", 'weight', 'share')
# Distillation's gradient over the task's: in between, AP hardly depends on the weight.
FLAT = 1.0, 1000.0

# Images to read at most in the search for objects.
MOST_DRAWN = 256


def load_samples(cfg: Config, num_images: int) -> tuple[DataLoader, list]:
    """Return the training data loader, and batches of a fixed random choice of its images."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    # YOLOX's preprocessor reads this, and in a run the Runner sets it.
    MessageHub.get_current_instance().update_info('iter', 0)
    if count_images(loader.dataset)[1]:  # some without labels: as the training mixes them
        return loader, list(islice(loader, -(-num_images // batch_size(loader))))
    return loader, batches_with_objects(loader, num_images)


def batches_with_objects(loader: DataLoader, num_images: int) -> list:
    """Return batches of a random choice of images, in each of which an image has an object.

    As many as ``num_images`` fill. Images are read only where the annotations have objects, and at
    most ``MOST_DRAWN`` of them, since augmentation may lose these.
    """
    order = list(DefaultSampler(loader.dataset, shuffle=True, seed=0))
    size = batch_size(loader)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    likely = (it for it in batches if any(may_have_objects(loader.dataset, n) for n in it))
    likely = list(islice(likely, -(-max(num_images, MOST_DRAWN) // size)))
    wanted, kept = -(-min(num_images, len(order)) // size), []
    drawn = with_progress(loader_of(loader, likely), 'training images', total=wanted)
    for batch in drawn if likely else ():
        if any_object(batch['data_samples']):
            kept.append(batch)
        if len(kept) == wanted:
            break
    return kept


def may_have_objects(dataset: Dataset, index: int) -> bool:
    """Return whether the annotations of an image have an object; True if that is not known."""
    while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset  # e.g. MultiImageMixDataset, whose images are the same
    if not hasattr(dataset, 'get_data_info'):
        return True
    instances = dataset.get_data_info(index).get('instances')
    return instances is None or any(not it.get('ignore_flag') for it in instances)


def prepare(cfg: Config, model: RdimKDDistiller, batches: Sequence[dict]) -> None:
    """Give a student the weights that its training starts from, and fit its projections."""
    model.init_weights()
    if cfg.get('load_from'):
        weights = load_checkpoint_safely(cfg.load_from, who='model')
        # As the Runner does: weights of another shape are skipped.
        load_state_dict(model, weights, logger='silent')
    inherit_from_teacher(model)
    fit_projections(model, deepcopy(batches))
    model.train()


def training_input(preprocessor: nn.Module, batch: dict) -> dict:
    """Preprocess a copy of a batch, since batch augmentations scale boxes in place."""
    return preprocessor(deepcopy(batch), True)


@dataclass
class LevelMeasure:
    """A level's loss before weighting, and gradient norms at the student's map, one per batch."""

    losses: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)
    of_task: list[float] = field(default_factory=list)
    trained: bool = True


def measure_gradients(model: RdimKDDistiller, batches: Sequence[dict], report: Report) -> None:
    """Report on each level's loss and gradient beside the task's, and the balancing weight.

    The model comes from :func:`prepare`; its loss weights are 1 afterwards. A loss that is not
    finite is a ``FloatingPointError`` that names it.
    """
    number = f'{len(batches)} batch{"es" * (len(batches) > 1)}'
    table = Table(f"Before training, at the student's maps, median of {number}", GRADIENT_COLUMNS)
    for part in model.distill.per_teacher:
        if not part.has_weight:
            continue
        weights = _take_weights(part)
        levels, balances = _measure(model, part, batches)
        for tap, loss in part.items():
            balance = median(balances[tap])
            recommended = loss.auto_share * balance
            where = part.full_name(tap)
            measured = {name: levels[name] for name in loss.level_names}
            factor = recommended if loss.auto else 1.0
            table.rows += _rows(measured, [factor * weight for weight in weights[tap]])
            _judge_frozen(where, measured, weights[tap], report)
            _judge_weight(where, loss, max(weights[tap]), balance, report)
            report.figures.setdefault('recommended_loss_weight', {})[where] = recommended
    report.tables.append(table)


def _measure(
    model: RdimKDDistiller, part: Distillation, batches: Sequence[dict]
) -> tuple[dict[str, LevelMeasure], dict[str, list[float]]]:
    """Return the measures by level, and :func:`gradient_balance` by tap and batch."""
    levels: dict[str, LevelMeasure] = defaultdict(LevelMeasure)
    balances: dict[str, list[float]] = defaultdict(list)
    for batch in with_progress(batches, 'gradients'):
        task, distances, outputs = _losses(model, part, batch)
        for tap, loss in part.items():
            of_tap = [distances[name] for name in loss.loss_names]
            balances[tap].append(float(gradient_balance(task, sum(of_tap), outputs[tap])))
            pairs = part.level_pairs[tap]
            for name, distance, (student, _) in zip(loss.level_names, of_tap, pairs):
                maps = [outputs[tap][student.index]]
                levels[name].trained = maps[0].requires_grad
                levels[name].losses.append(distance.item())
                levels[name].gradients.append(squared_gradient(distance, maps).sqrt().item())
                levels[name].of_task.append(squared_gradient(task, maps).sqrt().item())
    return levels, balances


def _losses(
    model: RdimKDDistiller, part: Distillation, batch: dict
) -> tuple[Tensor, dict[str, Tensor], dict[str, list[Tensor]]]:
    """Return the task loss, the distillation losses and the student's maps of a batch."""
    data = training_input(model.data_preprocessor, batch)
    batch = labelled_first(data['inputs'], data['data_samples'])
    teacher_feats = part.teacher_feats(batch.inputs, batch.samples)
    batch = batch.shrunk(model.distill.shrink)
    with differentiable_checkpoints():
        losses, outputs = model.own_losses(batch)
    task, logged = model.parse_losses(losses)
    broken = [name for name, value in logged.items() if not value.isfinite()]
    if broken:
        raise FloatingPointError(f"the student's own {', '.join(broken)} is not finite")
    return task, part(outputs, teacher_feats, sizes=image_sizes(batch.samples)), outputs


def _rows(levels: Mapping[str, LevelMeasure], weights: Sequence[float]) -> list[tuple[str, ...]]:
    rows = []
    for (name, level), weight in zip(levels.items(), weights):
        gradient, of_task = median(level.gradients), median(level.of_task)
        share = weight * gradient / of_task if of_task else math.inf
        share = f'{share:.2g}' if share < 1000 else '> 1000' if level.trained else '-'
        figures = (f'{median(level.losses):.3g}', f'{gradient:.2g}', f'{of_task:.2g}')
        rows.append((name, *figures, f'{weight:.3g}', share))
    return rows


def _take_weights(part: Distillation) -> dict[str, list[float]]:
    """Return the configured weights by tap, and set the weights of the losses to 1."""
    weights = {}
    for tap, loss in part.items():
        weights[tap] = list(loss.level_weights)
        loss.level_weights = [1.0] * loss.num_levels
        loss.auto_weight.fill_(1.0)
    return weights


def _judge_frozen(
    where: str, levels: Mapping[str, LevelMeasure], weights: Sequence[float], report: Report
) -> None:
    frozen = [name for (name, it), w in zip(levels.items(), weights) if w and not it.trained]
    if frozen:
        report.warning(
            f"Levels of '{where}'",
            f'all layers before {", ".join(frozen)} are frozen, so a loss there has no effect',
            'give these levels weight 0 (loss_weight, by stride), or tap a later module',
        )


def _judge_weight(
    where: str, loss: FeatureLoss, weight: float, balance: float, report: Report
) -> None:
    """Report distillation's gradient over the task's, whose balance is that of weight 1."""
    what, recommended = f"Weight at '{where}'", loss.auto_share * balance
    if loss.auto:
        text = f"'auto' is about {recommended:.3g}: distillation's gradient"
        text = f"{text} is {loss.auto_share:g} times the task's"
        if PLAUSIBLE[0] <= balance <= PLAUSIBLE[1]:
            report.ok(what, text)
            return
        text = f'{text}, and at weight 1 {1 / balance:.2g} times, which is implausible'
        report.warning(what, text, "see the teacher's input and weights, or give a number")
        return
    share = weight / balance
    times = f'{share:,.0f}' if share >= 10 else f'{share:.2g}'
    text = f"{weight:g}: distillation's gradient is {times} times the task's"
    if weight == 0 or FLAT[0] <= share <= FLAT[1]:
        report.ok(what, f"{text}; 'auto' would be {recommended:.3g}")
        return
    effect = 'drowns the task' if share > 1 else 'does little'
    remedy = f"set loss_weight='auto', which would be {recommended:.3g}"
    report.warning(what, f'{text}; it {effect}', remedy)
