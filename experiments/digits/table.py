"""The table of experiments on digits, each a base config and its overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..study import Experiment

PLAIN = 'configs/digits/fcos_r18.py'
DISTILLED = 'configs/digits/rdimkd_fcos_r50_r18.py'
FCOS_TEACHER = 'configs/digits/fcos_r50_teacher.py'
RETINANET_TEACHER = 'configs/digits/retinanet_r50_teacher.py'
WRONG_INPUT = 'configs/digits/controls/teacher_wrong_input.py'
DIMS = (8, 16, 32, 64, 128)  # the FPN has 128 channels, in teachers and students
DIM = 64  # unless a row says otherwise
WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)

GROUPS = {
    'main': 'RdimKD and its rivals at weight 1',
    'normalize': 'Scale of the compared maps',
    'dim': 'Number of directions d (of 128 channels)',
    'weight': 'Loss weight',
    'decay': 'A weight that fades',
    'whitening': 'Weight of the directions',
    'bases': 'Other ways with the basis K',
    'controls': 'Controls: teachers that know nothing, or see the wrong input',
    'size': 'Smaller and larger students',
    'family': 'A teacher of another family',
    'teachers': 'Another training of the teacher',
    'schedule': 'Twice the schedule: 8 epochs',
}


def _rdimkd(
    name: str,
    title: str,
    *groups: str,
    projection: str = 'PCAProjection',
    dim: int | None = DIM,
    loss: str = 'RdimKDLoss',
    normalize: str | None = 'standardize',
    weight: float = 1.0,
    teacher: str = 'teacher_fcos',
    changes: Mapping | None = None,
    plain: str = 'plain',
    rival: str | None = 'pkd',
    **options,
) -> Experiment:
    """Return a distilled student's experiment.

    The loss is spelt out in full, so that the experiment does not depend on the package's defaults.
    """
    projection = {'type': projection, **({'dim': dim} if dim else {})}
    loss = {'type': loss, 'projection': projection, 'normalize': normalize, 'loss_weight': weight}
    changes = {
        'custom_imports.imports': ['rdimkd_det', 'experiments.digits.variants'],
        'model.losses': {'_delete_': True, 'neck': {**loss, **options}},
        'model.teacher.config': TEACHERS[teacher].base,
        **(changes or {}),
    }
    return Experiment(name, title, groups, DISTILLED, changes, teacher, plain, rival)


def _l2(name: str, title: str, *groups: str, **options) -> Experiment:
    return _rdimkd(name, title, *groups, projection='IdentityProjection', dim=None, **options)


def _by_name(experiments: Iterable[Experiment]) -> dict[str, Experiment]:
    return {experiment.name: experiment for experiment in experiments}


TEACHERS = _by_name(
    [
        Experiment('teacher_fcos', 'teacher, FCOS R50', (), FCOS_TEACHER, seed=0),
        Experiment('teacher_fcos_seed1', 'teacher, FCOS R50, seed 1', (), FCOS_TEACHER, seed=1),
        Experiment('teacher_retinanet', 'teacher, RetinaNet R50', (), RETINANET_TEACHER, seed=0),
        # Its BatchNorm has the statistics of the images; its weights stay at initialisation.
        Experiment(
            'teacher_random',
            'teacher of random weights',
            (),
            FCOS_TEACHER,
            {'optim_wrapper.optimizer.lr': 0.0, 'train_cfg.max_epochs': 1},
            seed=0,
        ),
    ]
)


def _student_size(base_channels: int, depth: int, prefix: str) -> dict:
    """Return overrides for a ResNet of another size; ``prefix`` is the student's key."""
    expansion = 1 if depth < 50 else 4
    return {
        f'{prefix}.backbone.depth': depth,
        f'{prefix}.backbone.base_channels': base_channels,
        f'{prefix}.neck.in_channels': [base_channels * expansion * 2**i for i in range(4)],
    }


def _schedule(epochs: int) -> dict:
    warmup = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100)
    cosine = dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=0,
        end=epochs,
        T_max=epochs,
        convert_to_iter_based=True,
    )
    return {'train_cfg.max_epochs': epochs, 'param_scheduler': [warmup, cosine]}


def _scales() -> list[Experiment]:
    modes = {'none': (None, 'as they are'), 'teacher': ('teacher', "over the teacher's deviation")}
    rows = []
    for suffix, (mode, title) in modes.items():
        rows.append(_l2(f'l2_{suffix}', f'naive L2, {title}', 'normalize', normalize=mode))
        for letter, projection in PROJECTIONS.items():
            rows.append(
                _rdimkd(
                    f'rdimkd_{letter.lower()}_{suffix}',
                    f'RdimKD-{letter}, {title}',
                    'normalize',
                    projection=projection,
                    normalize=mode,
                )
            )
    return rows


def _dims() -> list[Experiment]:
    return [
        _rdimkd(
            f'rdimkd_{letter.lower()}_d{dim}',
            f'RdimKD-{letter}, d = {dim}',
            'dim',
            projection=PROJECTIONS[letter],
            dim=dim,
        )
        for letter in ('P', 'R')
        for dim in DIMS
        if dim != DIM
    ]


def _weights() -> list[Experiment]:
    others = [weight for weight in WEIGHTS if weight != 1.0]
    return [
        *(
            _rdimkd(f'rdimkd_p_w{w:g}', f'RdimKD-P, d = 64, weight {w:g}', 'weight', weight=w)
            for w in others
        ),
        *(_l2(f'pkd_w{w:g}', f'PKD, weight {w:g}', 'weight', weight=w) for w in others),
    ]


def _decays() -> list[Experiment]:
    fades = {'custom_hooks': [{'type': 'DistillHook', 'schedule': {'decay': 'linear'}}]}
    options = dict(changes=fades, rival='pkd_decay')
    return [
        _rdimkd('rdimkd_p_decay', 'RdimKD-P, d = 64, weight 1 to 0, linear', 'decay', **options),
        _l2('pkd_decay', 'PKD, weight 1 to 0, linear', 'decay', **options),
    ]


def _whitening() -> list[Experiment]:
    return [
        _rdimkd(
            f'rdimkd_p_power{power:g}',
            f'RdimKD-P, d = 64, directions count by variance^{power:g}',
            'whitening',
            loss='PartlyWhitenedLoss',
            power=power,
        )
        for power in (0.25, 0.5, 1.0)
    ]


def _bases() -> list[Experiment]:
    return [
        _rdimkd(
            'rdimkd_r_redrawn',
            'RdimKD-R, d = 64, K redrawn at each step',
            'bases',
            projection='RedrawnProjection',
            loss='RedrawingLoss',
        ),
        _rdimkd(
            'rdimkd_r_three',
            'RdimKD-R, d = 64, three K at once',
            'bases',
            projection='SeveralRandomProjections',
        ),
    ]


def _controls() -> list[Experiment]:
    wrong = {'model.teacher.config': WRONG_INPUT}
    return [
        _rdimkd('rdimkd_random_teacher', 'RdimKD-P, teacher of random weights', 'controls',
                teacher='teacher_random'),
        _rdimkd('rdimkd_wrong_input', 'RdimKD-P, teacher fed the wrong normalisation', 'controls',
                changes=wrong),
    ]  # fmt: skip


def _sizes() -> list[Experiment]:
    sizes = {
        'small': ('FCOS R18, an eighth of the width', (8, 18)),
        'equal': ("FCOS R50, the teacher's own size", (32, 50)),
    }
    rows = []
    for suffix, (title, size) in sizes.items():
        plain, distilled = (
            dict(changes=_student_size(*size, prefix), plain=f'plain_{suffix}', rival=None)
            for prefix in ('model', 'model.student')
        )
        rows += [
            Experiment(f'plain_{suffix}', f'plain, {title}', ('size',), PLAIN, **plain),
            _rdimkd(f'rdimkd_{suffix}', f'RdimKD-P, {title}', 'size', **distilled),
        ]
    return rows


def _families() -> list[Experiment]:
    options = dict(teacher='teacher_retinanet', rival='pkd_retinanet')
    return [
        _rdimkd('rdimkd_retinanet', 'RdimKD-P, RetinaNet R50 as teacher', 'family', **options),
        _l2('pkd_retinanet', 'PKD, RetinaNet R50 as teacher', 'family', **options),
    ]


def _other_teachers() -> list[Experiment]:
    options = dict(teacher='teacher_fcos_seed1', rival='pkd_teacher1')
    return [
        _rdimkd('rdimkd_p_teacher1', 'RdimKD-P, teacher of seed 1', 'teachers', **options),
        _l2('pkd_teacher1', 'PKD, teacher of seed 1', 'teachers', **options),
    ]


def _schedules() -> list[Experiment]:
    options = dict(changes=_schedule(8), plain='plain_8e', rival='pkd_8e')
    return [
        Experiment('plain_8e', 'plain, 8 epochs', ('schedule',), PLAIN, **options),
        _l2('pkd_8e', 'PKD, 8 epochs', 'schedule', **options),
        _rdimkd('rdimkd_p_8e', 'RdimKD-P, d = 64, 8 epochs', 'schedule', **options),
    ]


PROJECTIONS = {'P': 'PCAProjection', 'R': 'RandomProjection', 'A': 'AutoencoderProjection'}
EVERYWHERE = ('main', 'normalize', 'decay', 'controls', 'size', 'family', 'teachers')

TABLE = {
    **TEACHERS,
    **_by_name(
        [
            Experiment('plain', 'plain student, FCOS R18', (*EVERYWHERE, 'dim', 'weight'), PLAIN),
            _l2('pkd', 'PKD: standardised channels, K = I', *EVERYWHERE, 'weight'),
            _rdimkd(
                'rdimkd_p',
                'RdimKD-P, d = 64, standardised',
                *EVERYWHERE, 'dim', 'weight', 'whitening', 'bases',
            ),
            _rdimkd(
                'rdimkd_r',
                'RdimKD-R, d = 64, standardised',
                'main', 'dim', 'bases',
                projection='RandomProjection',
            ),
            _rdimkd(
                'rdimkd_a',
                'RdimKD-A, d = 64, standardised',
                'main',
                projection='AutoencoderProjection',
            ),
            *_scales(),
            *_dims(),
            *_weights(),
            *_decays(),
            *_whitening(),
            *_bases(),
            *_controls(),
            *_sizes(),
            *_families(),
            *_other_teachers(),
            *_schedules(),
        ]
    ),
}  # fmt: skip
