"""The table of experiments that every set of photographs has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..study import Experiment, Study
from .images import Photos, prepare_photos

COCO_WEIGHTS = 'yolox_nano_coco_mmdet.pth'
GROUPS = {
    'weight': 'Loss weight, at d = 8',
    'dim': 'Number of directions d (the student has 32 channels, the teacher 64)',
}
DIM = 8  # unless a row says otherwise
WEIGHTS = (1, 10, 100, 1000)


def photos_study(photos: Photos) -> Study:
    """Return the experiments on a set of photographs."""
    return Study(
        table=_table(f'configs/photos/{photos.name}'),
        groups=GROUPS,
        data=f'data/{photos.name}',
        results=f'docs/results/{photos.name}',
        document='docs/results.md',
        images=photos,
        few_images=photos,
        version='1',
        prepare=prepare_photos,
        paces={'teacher': 0.8, 'plain': 0.5, 'distilled': 0.7},
    )


def _table(configs: str) -> dict[str, Experiment]:
    plain, distilled = f'{configs}/yolox_pico.py', f'{configs}/rdimkd_yolox_nano_pico.py'
    teacher = Experiment(
        'teacher',
        'teacher, YOLOX-nano from COCO weights',
        (),
        f'{configs}/yolox_nano_teacher.py',
        seed=0,
        weights=COCO_WEIGHTS,
    )

    def rdimkd(
        name: str,
        title: str,
        *groups: str,
        dim: int = DIM,
        weight: float | str = 100.0,
        changes: Mapping | None = None,
        **options,
    ) -> Experiment:
        projection = {'type': 'PCAProjection', 'dim': dim}
        loss = {'type': 'RdimKDLoss', 'projection': projection, 'loss_weight': weight, **options}
        changes = {'model.losses': {'_delete_': True, 'neck': loss}, **(changes or {})}
        return Experiment(name, title, groups, distilled, changes, 'teacher')

    return _by_name(
        [
            teacher,
            Experiment('plain', 'plain student', tuple(GROUPS), plain),
            *(
                rdimkd(f'd8_w{w}', f'RdimKD-P, d = 8, weight {w}', 'weight', weight=float(w))
                for w in WEIGHTS
            ),
            *(
                rdimkd(f'd{dim}_w100', f'RdimKD-P, d = {dim}, weight 100', 'dim', dim=dim)
                for dim in (2, 4, 16, 32)
            ),
        ]
    )


def _by_name(experiments: Iterable[Experiment]) -> dict[str, Experiment]:
    return {experiment.name: experiment for experiment in experiments}
