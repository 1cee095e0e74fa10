"""Views of an image: the maps of teacher and students in the subspace, and their detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import cv2
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from ...distiller import RdimKDDistiller
from ...distiller.distillation import Distillation
from ...distiller.monitoring import explained_share
from ...errors import ConfigError
from ...features import record_outputs
from ...functional import RELATIVE_EPS
from ...losses import FeatureLoss
from ...options import explained
from ...preflight.classes import teacher_classes
from ...preflight.whole_teacher import at_size_of, build_detector

NUM_COLOURS = 3
DEVIATIONS = 2  # standard deviations from the mean to full or to no colour


@dataclass(frozen=True)
class StudentView:
    """A student's map at one level, compared with the teacher's."""

    colours: np.ndarray  # the map as colours (H, W, 3), in [0, 1]
    # (H, W), root mean square over the directions of the difference of the standardised
    # coordinates; 1.4 where student and teacher are unrelated.
    difference: np.ndarray
    # Share of the teacher's variance in the subspace that the student explains; None where the
    # teacher's map is constant, as with a single position.
    explained: float | None


@dataclass(frozen=True)
class LevelView:
    """The maps of one level."""

    name: str  # tap and stride
    teacher: np.ndarray  # its map as colours (H, W, 3), in [0, 1]
    students: dict[str, StudentView]  # without the plain student where the loss has an adapter


@dataclass(frozen=True)
class ImageView:
    """Everything that is shown of an image."""

    path: Path
    image: np.ndarray  # RGB (H, W, 3), uint8
    levels: list[LevelView] = field(default_factory=list)
    # Name of a student, or 'teacher', to (box in pixels, class, score) of each detected object.
    detections: dict[str, list] = field(default_factory=dict)


def view_level(
    loss: FeatureLoss, level: int, students: Mapping[str, Tensor], teacher: Tensor
) -> LevelView:
    """View the maps of one image at one level in the subspace of a loss with fitted projections.

    Of a loss without any, whole maps are compared. ``students`` has the map (1, C_s, H, W) of each
    student by name, ``teacher`` is (1, C_t, H, W). The three colour channels are the first three
    principal directions of the teacher's map in the subspace, computed on this image. Each is
    standardised, for the teacher and for each student.
    """
    coordinates, views = None, {}
    for name, maps in students.items():
        adapted, target = loss.aligned(level, maps, teacher)
        height, width = target.shape[2:]
        own, coordinates = (_coordinates(loss, level, it) for it in (adapted, target))
        axes = principal_axes(coordinates)
        difference = (_standardize(own) - _standardize(coordinates)).square().mean(0).sqrt()
        views[name] = StudentView(
            _colours(axes.t() @ own, height, width),
            difference.view(height, width).cpu().numpy(),
            _explained(own, coordinates),
        )
    colours = _colours(axes.t() @ coordinates, height, width)
    return LevelView(loss.level_names[level], colours, views)


def _coordinates(loss: FeatureLoss, level: int, maps: Tensor) -> Tensor:
    """Return one image's map (1, C, H, W) in the subspace of a loss, if it has one: (d, H * W)."""
    flat = maps[0].flatten(1)
    return loss.projections[level].basis.to(flat).t() @ flat if loss.projections else flat


def _explained(student: Tensor, teacher: Tensor) -> float | None:
    if torch.equal(teacher, teacher[:, :1].expand_as(teacher)):
        return None
    return float(explained_share(student[None], teacher[None]))


def principal_axes(coordinates: Tensor) -> Tensor:
    """Return the directions (d, at most 3) in which coordinates (d, L) vary most, in order."""
    centred = coordinates - coordinates.mean(1, keepdim=True)
    _, vectors = torch.linalg.eigh(centred @ centred.t())
    return vectors.flip(1)[:, :NUM_COLOURS]


def _standardize(coordinates: Tensor) -> Tensor:
    centred = coordinates - coordinates.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)
    return centred * (variance + RELATIVE_EPS * variance.mean()).clamp(min=1e-30).rsqrt()


def _colours(coordinates: Tensor, height: int, width: int) -> np.ndarray:
    colours = torch.full((NUM_COLOURS, height * width), 0.5)
    colours[: len(coordinates)] += _standardize(coordinates).cpu() / (2 * DEVIATIONS)
    return colours.clamp(0, 1).view(NUM_COLOURS, height, width).permute(1, 2, 0).numpy()


class Viewer:
    """Runs images through a teacher, its distilled student and an optional plain student.

    The students are in evaluation mode; detections below ``score_threshold`` are dropped. A teacher
    that is read from a cache is refused, since that has the maps of its own images only. The
    ``pipeline`` makes the teacher's images, larger than the student's by its ``image_scale``.
    """

    def __init__(
        self,
        distilled: RdimKDDistiller,
        plain: nn.Module | None,
        pipeline: Compose,
        score_threshold: float,
    ) -> None:
        first = distilled.distill.per_teacher[0]
        if any(part.teacher.projected for part in distilled.distill.per_teacher):
            raise ConfigError(
                'visualize: model.teacher.cache holds the maps of its own images only; drop it '
                'from the config, so that the teacher itself runs.'
            )
        self.distilled = distilled
        self.students = {'distilled': distilled, **({} if plain is None else {'plain': plain})}
        self.pipeline = pipeline
        self.score_threshold = score_threshold
        self.classes = distilled.dataset_meta.get('classes', ())
        self.teacher_classes = teacher_classes(first.teacher.source) or ()
        try:
            self.teacher = build_detector(first, next(distilled.parameters()).device)
        except ConfigError:  # the checkpoint does not fit the head
            self.teacher = None

    @torch.no_grad()
    def __call__(self, path: Path) -> ImageView:
        """View one image."""
        image = cv2.imread(str(path))
        if image is None:
            raise ConfigError(f'{path} cannot be read as an image.')
        view = ImageView(path, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        with explained(f'{path}: the test pipeline does not take it'):
            shown = self.pipeline(dict(img_path=str(path), img_id=0))
        batch = pseudo_collate([shown])
        batch = self.distilled.data_preprocessor(batch, False)
        inputs, samples = batch['inputs'], batch['data_samples']
        parts = self.distilled.distill.per_teacher
        if self.teacher is not None:
            seen = parts[0].teacher.bridge(inputs, samples)
            (found,) = self.teacher.predict(seen, at_size_of(seen, samples))
            view.detections['teacher'] = self._detections(found, self.teacher_classes)
        outputs, smaller = {}, self.distilled.distill.shrink(inputs, samples)
        for name, student in self.students.items():
            with record_outputs(student, self.distilled.distill.taps) as outputs[name]:
                (found,) = student.predict(smaller[0], deepcopy(smaller[1]))
            view.detections[name] = self._detections(found, self.classes)
        for part in parts:
            view.levels.extend(self._levels(part, outputs, inputs, samples))
        return view

    def _detections(self, sample: DetDataSample, classes: Sequence[str]) -> list:
        found = sample.pred_instances
        found = found[found.scores >= self.score_threshold]
        names = [classes[it] if it < len(classes) else f'class {it}' for it in found.labels]
        return list(zip(found.bboxes.tolist(), names, found.scores.tolist()))

    def _levels(
        self, part: Distillation, outputs: Mapping, inputs: Tensor, samples: list
    ) -> list[LevelView]:
        """Return the views of one teacher's levels, paired with the student's as in training."""
        teacher_feats = part.teacher_feats(inputs, samples)
        seen = {name: part.compared(maps, teacher_feats) for name, maps in outputs.items()}
        height, width = samples[0].img_shape
        shares = height / inputs.shape[2], width / inputs.shape[3]  # without the padding
        views = []
        for number, (_, loss, student_feats, teacher_maps, _) in enumerate(seen['distilled']):
            for level, teacher in enumerate(teacher_maps):
                students = {'distilled': student_feats[level]}
                # The adapter was trained for the distilled student; it does not fit the plain one.
                if 'plain' in seen and not loss.has_adapter(level):
                    students['plain'] = seen['plain'][number].student[level]
                students = {name: _crop(maps, shares) for name, maps in students.items()}
                views.append(view_level(loss, level, students, _crop(teacher, shares)))
        return views


def _crop(maps: Tensor, shares: tuple[float, float]) -> Tensor:
    height, width = (ceil(side * share) for side, share in zip(maps.shape[2:], shares))
    return maps[:, :, :height, :width]
