"""The table of experiments that every set of photographs has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..study import Experiment, Study
from . import halves, pretrained
from .images import BCCD, Photos, prepare_photos

COCO_WEIGHTS = 'yolox_nano_coco_mmdet.pth'
GROUPS = {
    'main': 'RdimKD and its rivals: YOLOX-nano of half the width, 24 epochs',
    'long': 'A long schedule: 72 epochs',
    'dim': 'Number of directions d: the student has 32 channels, the teacher 64',
    'balance': "The share of 'auto', and following the balance during training",
    'decay': 'A weight that fades over epochs 12 to 16 of 24',
    'controls': 'Controls: teachers that know nothing, or see the wrong input',
    'padding': 'Padding in the losses, statistics and calibration',
    'batch': 'Batches of 2 images, as those have whose images are large',
    'method': 'The basis, the statistics, and where to compare',
    'gfl': 'A student of another family: GFL R18 of half the width, 128 channels',
    'faster_rcnn': 'A two-stage student: Faster R-CNN R18 of half the width, 128 channels',
    **halves.GROUPS,
    **pretrained.GROUPS,
}
EQUAL_TIME = 1.4  # a distilled step over a plain one, docs/performance.md
GFL_EQUAL_TIME = 1.08  # the same for GFL's student, larger than its teacher: by the rows' seconds
FADING_TIME = 1 + (EQUAL_TIME - 1) * 2 / 3  # the same, where the last third has no teacher
SHORT, LONG = 24, 72  # epochs
# The tables of the two rows that the others are compared with.
EVERYWHERE = ('main', 'dim', 'balance', 'decay', 'controls', 'padding', 'method', 'imagenet')
VARIANTS = {
    'custom_imports.imports': [
        'rdimkd_det',
        'experiments.photos.variants',
        'experiments.photos.halves',
    ]
}


def photos_study(photos: Photos) -> Study:
    """Return the experiments on a set of photographs."""
    return Study(
        name=photos.name,
        table=_table(photos),
        groups=GROUPS,
        images=photos,
        few_images=photos,
        version='1',
        prepare=prepare_photos,
        paces={'teacher': 0.8, 'plain': 0.5, 'distilled': 0.7},
    )


def _table(photos: Photos) -> dict[str, Experiment]:
    """Return the rows of a set.

    Unless a row says otherwise, d and the weight are the package's defaults: those are on trial.
    """

    configs = f'configs/photos/{photos.name}'

    def plain(
        name: str,
        title: str,
        *groups: str,
        student: str = 'yolox_pico',
        beside: str | None = None,
        epochs: int | None = None,
        changes: Mapping | None = None,
    ) -> Experiment:
        changes = {**(changes or {}), **(_schedule(epochs) if epochs else {})}
        return Experiment(
            name,
            title,
            groups,
            f'{configs}/{student}.py',
            changes,
            plain=beside or name,
            rival=None,
        )

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
        taps: Sequence[str] = ('neck',),
        from_teacher: bool = False,
        teacher: str = 'teacher',
        plain: str = 'plain',
        rival: str | None = 'pkd',
        **options,
    ) -> Experiment:
        loss = {'type': type, 'loss_weight': weight, **options}
        if projection:
            loss['projection'] = {'type': projection, **({'dim': dim} if dim else {})}
            if from_teacher:
                loss['projection']['checkpoint'] = None
        losses = {'_delete_': True, **dict.fromkeys(taps, loss)}
        changes = {**VARIANTS, 'model.losses': losses, **(changes or {})}
        base = f'{configs}/rdimkd_yolox_nano_{student}.py'
        return Experiment(name, title, groups, base, changes, teacher, plain, rival)

    def other(family: str, row: str, title: str, **options) -> Experiment:
        beside = dict(student=f'{family}_r18', plain=f'{family}_plain', rival=None)
        return distilled(f'{family}_{row}', title, family, **beside, **options)

    teacher = Experiment(
        'teacher',
        'teacher, YOLOX-nano from COCO weights',
        (),
        f'{configs}/yolox_nano_teacher.py',
        seed=0,
        weights=COCO_WEIGHTS,
    )
    # Its BatchNorm has the statistics of the images; its weights stay at initialisation.
    random_teacher = Experiment(
        'teacher_random',
        'teacher of random weights',
        (),
        f'{configs}/yolox_nano_teacher.py',
        {'optim_wrapper.optimizer.lr': 0.0, 'train_cfg.max_epochs': 1, 'load_from': None},
        seed=0,
    )
    wrong = {'model.teacher.config': f'{configs}/controls/teacher_wrong_input.py'}
    long = _schedule(LONG)
    beside_long = dict(plain='plain_long', rival='pkd_long')
    labels = halves.half_of_labels(photos.num_train)
    half_labels = dict(plain='labels_plain', rival=None)
    half_pixels = dict(plain='pixels_plain', rival=None)
    shrunk = {**halves.TESTED_AT_HALF, 'model.teacher.image_scale': 2}
    pkd = dict(projection='IdentityProjection')
    l2 = dict(pkd, normalize=None)
    cosine = dict(projection=None, type='CosineLoss')
    # Adam's learning rate goes with the square root of the batch.
    two = {'train_dataloader.batch_size': 2, 'optim_wrapper.optimizer.lr': 1e-3}
    two_images = dict(changes=two, plain='batch2_plain', rival=None)
    unlabelled = distilled(
        'labels_unlabelled',
        "RdimKD-P, the other half's images without labels",
        'labels',
        student='pico_unlabelled',
        **half_labels,
    )
    return _by_name(
        [
            teacher,
            random_teacher,
            plain('plain', 'plain student', *EVERYWHERE),
            plain(
                'plain_equal_time',
                'plain student, 34 epochs: equal time',
                'main',
                beside='plain',
                epochs=round(SHORT * EQUAL_TIME),
            ),
            distilled('rdimkd_p', 'RdimKD-P', *EVERYWHERE),
            distilled('rdimkd_r', 'RdimKD-R', 'main', projection='RandomProjection'),
            distilled('rdimkd_a', 'RdimKD-A', 'main', projection='AutoencoderProjection'),
            distilled('pkd', 'PKD', 'main', **pkd),
            distilled('pkd_share1', 'PKD, share 1', 'main', auto_share=1.0, **pkd),
            distilled('pkd_share100', 'PKD, share 100', 'main', auto_share=100.0, **pkd),
            distilled('l2', 'naive L2', 'main', **l2),
            distilled('l2_share1', 'naive L2, share 1', 'main', auto_share=1.0, **l2),
            distilled('l2_share100', 'naive L2, share 100', 'main', auto_share=100.0, **l2),
            distilled('cosine', 'cosine', 'main', **cosine),
            distilled('cosine_share1', 'cosine, share 1', 'main', auto_share=1.0, **cosine),
            distilled('cosine_share100', 'cosine, share 100', 'main', auto_share=100.0, **cosine),
            plain('plain_long', 'plain student, 72 epochs', 'long', epochs=LONG),
            plain(
                'plain_long_equal_time',
                'plain student, 101 epochs: equal time',
                'long',
                beside='plain_long',
                epochs=round(LONG * EQUAL_TIME),
            ),
            distilled('rdimkd_p_long', 'RdimKD-P, 72 epochs', 'long', changes=long, **beside_long),
            distilled('pkd_long', 'PKD, 72 epochs', 'long', changes=long, **beside_long, **pkd),
            distilled(
                'long_d16',
                'RdimKD-P, d = 16, 72 epochs',
                'long',
                dim=16,
                changes=long,
                **beside_long,
            ),
            distilled(
                'long_fading',
                'RdimKD-P, its weight fades over epochs 36 to 48 of 72',
                'long',
                changes={**long, **_fading(LONG)},
                **beside_long,
            ),
            plain(
                'plain_fading_time',
                'plain student, 30 epochs: equal time',
                'decay',
                beside='plain',
                epochs=round(SHORT * FADING_TIME),
            ),
            distilled('fading', 'RdimKD-P', 'decay', changes=_fading(SHORT)),
            distilled('pkd_fading', 'PKD', 'decay', changes=_fading(SHORT), **pkd),
            distilled(
                'random_fading',
                'a teacher that knows nothing',
                'decay',
                teacher='teacher_random',
                changes=_fading(SHORT),
            ),
            distilled(
                'random_teacher',
                'a teacher that knows nothing',
                'controls',
                teacher='teacher_random',
            ),
            distilled(
                'wrong_input', 'a teacher that sees the wrong input', 'controls', changes=wrong
            ),
            *(distilled(f'd{dim}', f'd = {dim}', 'dim', dim=dim) for dim in (4, 16, 32)),
            *(
                distilled(f'share{share}', f'share {share}', 'balance', auto_share=float(share))
                for share in (1, 100)
            ),
            distilled('with_padding', 'padding compared too', 'padding', type='WithPaddingLoss'),
            distilled(
                'isotropic',
                'directions of the same variance (PHI-S)',
                'method',
                projection='IsotropicProjection',
            ),
            distilled(
                'head_basis',
                'directions that the head reads',
                'method',
                projection='HeadProjection',
                from_teacher=True,
            ),
            distilled(
                'image_statistics',
                'statistics of each image',
                'method',
                type='ImageStatisticsLoss',
            ),
            distilled('backbone', 'at the backbone', 'method', taps=('backbone',)),
            distilled('both_taps', 'at backbone and neck', 'method', taps=('backbone', 'neck')),
            distilled('following', 'share 10, followed', 'balance', type='FollowingLoss'),
            plain('batch2_plain', 'plain student', 'batch', changes=two),
            distilled('batch2_rdimkd_p', 'RdimKD-P', 'batch', **two_images),
            distilled(
                'batch2_image_statistics',
                'statistics of each image',
                'batch',
                type='ImageStatisticsLoss',
                **two_images,
            ),
            plain('gfl_plain', 'plain student', 'gfl', student='gfl_r18'),
            other('gfl', 'rdimkd_p', 'RdimKD-P'),
            other(
                'gfl',
                'fading',
                'RdimKD-P, its weight fades over epochs 12 to 16',
                changes=_fading(SHORT),
            ),
            *(other('gfl', f'd{dim}', f'd = {dim}', dim=dim) for dim in (8, 32, 64)),
            *(
                other('gfl', f'share{share}', f'share {share}', auto_share=float(share))
                for share in (1, 100)
            ),
            plain(
                'gfl_plain_long',
                'plain student, 78 epochs: equal time',
                'gfl',
                student='gfl_r18',
                epochs=round(LONG * GFL_EQUAL_TIME),
            ),
            distilled(
                'gfl_rdimkd_p_long',
                'RdimKD-P, 72 epochs',
                'gfl',
                student='gfl_r18',
                changes=long,
                plain='gfl_plain_long',
                rival=None,
            ),
            plain('faster_rcnn_plain', 'plain student', 'faster_rcnn', student='faster_rcnn_r18'),
            other('faster_rcnn', 'rdimkd_p', 'RdimKD-P'),
            other('faster_rcnn', 'pkd', 'PKD', **pkd),
            plain('labels_plain', 'plain student', 'labels', changes=labels),
            distilled('labels_rdimkd_p', 'RdimKD-P', 'labels', changes=labels, **half_labels),
            *([unlabelled] if photos is BCCD else []),  # it has the config
            plain('pixels_plain', 'plain student', 'pixels', changes=halves.TRAINED_AT_HALF),
            distilled(
                'pixels_rdimkd_p',
                'RdimKD-P, the teacher sees 128 pixels',
                'pixels',
                changes=halves.TRAINED_AT_HALF,
                **half_pixels,
            ),
            distilled(
                'pixels_scale2',
                'RdimKD-P, the teacher sees 256 pixels: image_scale=2',
                'pixels',
                changes=shrunk,
                **half_pixels,
            ),
            *pretrained.pretrained_rows(configs, _fading(SHORT)),
        ]
    )


def _schedule(epochs: int) -> dict:
    """Return the overrides for a schedule of so many epochs, see ``configs/photos/_base_``."""
    warmup = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50)
    ends = dict(begin=0, end=epochs, T_max=epochs)
    cosine = dict(type='CosineAnnealingLR', eta_min=0, convert_to_iter_based=True, **ends)
    return {'train_cfg.max_epochs': epochs, 'param_scheduler': [warmup, cosine]}


def _fading(epochs: int) -> dict:
    """Return the overrides for a weight that fades half way: its last third has no teacher."""
    schedule = {'decay': 'linear', 'decay_begin': epochs / 2, 'stop': epochs * 2 / 3}
    return {'custom_hooks': [{'type': 'DistillHook', 'schedule': schedule}]}


def _by_name(experiments: Iterable[Experiment]) -> dict[str, Experiment]:
    return {experiment.name: experiment for experiment in experiments}
