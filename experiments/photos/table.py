"""The table of experiments that every set of photographs has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..study import Experiment, Study
from .images import Photos, prepare_photos

COCO_WEIGHTS = 'yolox_nano_coco_mmdet.pth'
GROUPS = {
    'main': 'RdimKD and its rivals: YOLOX-nano of half the width, 24 epochs',
    'dim': 'Number of directions d: the student has 32 channels, the teacher 64',
    'balance': "The share of 'auto', and following the balance during training",
    'padding': 'Padding in the losses, statistics and calibration',
    'gfl': 'A student of another family: GFL R18 of half the width, 128 channels',
}
VARIANTS = {'custom_imports.imports': ['rdimkd_det', 'experiments.photos.variants']}


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
    """Return the rows of a set, whose configs are in a folder."""

    def plain(name: str, title: str, *groups: str, student: str = 'yolox_pico', **changes):
        return Experiment(name, title, groups, f'{configs}/{student}.py', changes)

    def distilled(
        name: str,
        title: str,
        *groups: str,
        projection: str | None = 'PCAProjection',
        dim: int | None = None,
        weight: float | str = 'auto',
        type: str = 'RdimKDLoss',
        student: str = 'pico',
        changes: Mapping | None = None,
        teacher: str = 'teacher',
        **options,
    ) -> Experiment:
        loss = {'type': type, 'loss_weight': weight, **options}
        if projection:
            loss['projection'] = {'type': projection, **({'dim': dim} if dim else {})}
        changes = {**VARIANTS, 'model.losses': {'_delete_': True, 'neck': loss}, **(changes or {})}
        base = f'{configs}/rdimkd_yolox_nano_{student}.py'
        beside = {'pico': 'plain', 'gfl_r18': 'gfl_plain'}[student]
        return Experiment(name, title, groups, base, changes, teacher, beside)

    teacher = Experiment(
        'teacher',
        'teacher, YOLOX-nano from COCO weights',
        (),
        f'{configs}/yolox_nano_teacher.py',
        seed=0,
        weights=COCO_WEIGHTS,
    )
    return _by_name(
        [
            teacher,
            plain('plain', 'plain student', 'main', 'dim', 'balance', 'padding'),
            distilled('rdimkd_p', 'RdimKD-P', 'main', 'dim', 'balance', 'padding'),
            distilled('rdimkd_r', 'RdimKD-R', 'main', projection='RandomProjection'),
            distilled('rdimkd_a', 'RdimKD-A', 'main', projection='AutoencoderProjection'),
            distilled('pkd', 'PKD', 'main', projection='IdentityProjection'),
            distilled('l2', 'naive L2', 'main', projection='IdentityProjection', normalize=None),
            distilled('cosine', 'cosine', 'main', projection=None, type='CosineLoss'),
            *(distilled(f'd{dim}', f'd = {dim}', 'dim', dim=dim) for dim in (4, 16, 32)),
            *(
                distilled(f'share{share}', f'share {share}', 'balance', auto_share=float(share))
                for share in (1, 100)
            ),
            distilled('with_padding', 'padding compared too', 'padding', type='WithPaddingLoss'),
            distilled('following', 'share 10, followed', 'balance', type='FollowingLoss'),
            plain('gfl_plain', 'plain student', 'gfl', student='gfl_r18'),
            distilled('gfl_rdimkd_p', 'RdimKD-P', 'gfl', student='gfl_r18'),
            *(
                distilled(f'gfl_d{dim}', f'd = {dim}', 'gfl', dim=dim, student='gfl_r18')
                for dim in (8, 32, 64)
            ),
            *(
                distilled(
                    f'gfl_share{share}',
                    f'share {share}',
                    'gfl',
                    auto_share=float(share),
                    student='gfl_r18',
                )
                for share in (1, 100)
            ),
        ]
    )


def _by_name(experiments: Iterable[Experiment]) -> dict[str, Experiment]:
    return {experiment.name: experiment for experiment in experiments}
