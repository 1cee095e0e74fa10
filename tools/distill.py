"""Distil any detector into any other from two configs and a checkpoint; no new config is needed."""

import argparse
import shlex
from pathlib import Path

from mmengine.config import Config

from rdimkd_det import ConfigError, distill_config
from rdimkd_det.commands import cli, launch
from rdimkd_det.commands.cfg_options import OptionsAction
from rdimkd_det.datasets.mixing import add_unlabelled, drop_labels
from rdimkd_det.datasets.scaling import enlarge_training
from rdimkd_det.projections import PROJECTIONS
from rdimkd_det.wrapping import write_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a student with a teacher.')
    parser.add_argument('config', metavar='STUDENT_CONFIG', help="path or 'mmdet::...'")
    parser.add_argument('teacher', nargs='?', metavar='TEACHER_CONFIG', help="path or 'mmdet::...'")
    parser.add_argument('checkpoint', nargs='?', metavar='TEACHER_CHECKPOINT', help='path or URL')
    parser.add_argument(
        '--teacher-module',
        metavar='CALLABLE',
        help='instead of a config: what returns a torch module, e.g. '
        'transformers.AutoBackbone.from_pretrained',
    )
    parser.add_argument(
        '--teacher-args',
        nargs='+',
        action=OptionsAction,
        default={},
        metavar='NAME=VALUE',
        help='arguments of that callable, e.g. pretrained_model_name_or_path=DIR',
    )
    parser.add_argument(
        '--teacher-options',
        nargs='+',
        action=OptionsAction,
        default={},
        metavar='NAME=VALUE',
        help='options of this teacher, e.g. fan_out=True mean="[...]" std="[...]"',
    )
    parser.add_argument('--projection', choices=sorted(PROJECTIONS), default='pca')
    parser.add_argument(
        '--dim',
        type=cli.number,
        help='directions d; for pca also a share of variance. Defaults to a quarter of the '
        'channels of the model that has fewer',
    )
    parser.add_argument('--normalize', choices=['standardize', 'teacher', 'none'])
    parser.add_argument(
        '--loss-weight', type=cli.weight, default='auto', help="a number or 'auto', the default"
    )
    parser.add_argument(
        '--tap', nargs='+', default=['neck'], help="modules to match. Defaults to 'neck'"
    )
    parser.add_argument(
        '--fade',
        action='store_true',
        help='let the weight fall to 0 from half to two thirds of the training; its last third '
        'needs no teacher',
    )
    parser.add_argument(
        '--teacher-tap',
        metavar='MODULE',
        help="module of the teacher to match, e.g. 'encoder'. Defaults to the student's, or to "
        'the output of a --teacher-module',
    )
    parser.add_argument(
        '--teacher-scale',
        type=int,
        default=1,
        metavar='N',
        help='train on images N times as large, which the teacher sees, and the student N times '
        'smaller: at the size that it is tested at',
    )
    parser.add_argument(
        '--unlabelled', metavar='DIR', help='a folder of images without labels to learn from, too'
    )
    parser.add_argument(
        '--per-batch',
        type=int,
        metavar='N',
        help='how many of them a batch has. Defaults to as many as labelled images',
    )
    parser.add_argument(
        '--labels',
        choices=['all', 'none'],
        default='all',
        help='none: train on the images without labels alone, before there are labels',
    )
    parser.add_argument(
        '--save-config', metavar='F', help='write the config to F instead of training'
    )
    parser.add_argument(
        '--force', action='store_true', help='overwrite what --save-config finds at F'
    )
    cli.add_common_arguments(parser)
    cli.add_training_arguments(parser)
    args = parser.parse_args()
    check_teacher(args)
    check_images(args)
    if args.save_config:
        check_saved_config(Path(args.save_config), args)
    return args


def check_teacher(args: argparse.Namespace) -> None:
    """Check that the teacher is given either as a config and a checkpoint or as a module."""
    if args.teacher_module and args.teacher:
        raise ConfigError(
            f'the teacher is either a config and a checkpoint or --teacher-module; got '
            f'{args.teacher} and {args.teacher_module}.'
        )
    if not args.teacher_module and (args.teacher_args or args.teacher_options):
        raise ConfigError('--teacher-args and --teacher-options need --teacher-module.')
    if not args.teacher_module and not args.checkpoint:
        raise ConfigError(
            'give a teacher: TEACHER_CONFIG and TEACHER_CHECKPOINT, or --teacher-module.'
        )


def teacher_of(args: argparse.Namespace) -> str | dict:
    """Return the teacher as ``distill_config`` takes it."""
    if not args.teacher_module:
        return args.teacher
    teacher = Config({'module': {'type': args.teacher_module, **args.teacher_args}})
    cli.apply_options(teacher, args.teacher_options)
    return teacher.to_dict()


def check_images(args: argparse.Namespace) -> None:
    """Check the options of images without labels, and of their size."""
    if args.teacher_scale < 1:
        raise ConfigError(f'--teacher-scale must be 1 or more, got {args.teacher_scale}.')
    if args.unlabelled is None and (args.labels == 'none' or args.per_batch is not None):
        option = '--per-batch' if args.labels == 'all' else '--labels none'
        raise ConfigError(f'{option} needs --unlabelled DIR, a folder of images.')
    if args.per_batch is not None and args.labels == 'none':
        raise ConfigError(
            '--per-batch: with --labels none all images of a batch are without labels; set '
            'train_dataloader.batch_size instead.'
        )
    if args.fade and args.labels == 'none':
        raise ConfigError('--fade: with --labels none the last third would have no loss at all.')
    if args.per_batch is not None and args.per_batch < 1:
        raise ConfigError(f'--per-batch must be 1 or more, got {args.per_batch}.')
    if args.unlabelled is not None and not Path(args.unlabelled).is_dir():
        raise ConfigError(f'--unlabelled {args.unlabelled} is no folder; give a folder of images.')


def check_saved_config(path: Path, args: argparse.Namespace) -> None:
    """Check that the new config can be written, and overwrites nothing without --force."""
    training = ('work_dir', 'cfg_options', 'amp', 'auto_scale_lr', 'resume')
    given = [f'--{name.replace("_", "-")}' for name in training if getattr(args, name)]
    if given:
        raise ConfigError(
            f'--save-config writes a config and trains nothing; give {", ".join(given)} to '
            f'tools/train.py with it.'
        )
    cli.check_out_file(path, '--save-config', folder_is_made=True)
    for who, read in (('student', args.config), ('teacher', args.teacher)):
        if read and path.exists() and Path(read).exists() and path.samefile(read):
            raise ConfigError(
                f"--save-config {path} is the {who}'s config, which the new one would stand on; "
                f'give another name.'
            )
    if path.exists() and not args.force:
        raise ConfigError(
            f'--save-config {path} already exists; give another name, or --force to overwrite it.'
        )


def main() -> None:
    args = parse_args()
    options = {}
    if args.normalize:
        options['normalize'] = None if args.normalize == 'none' else args.normalize
    if args.teacher_tap:
        options['teacher_module'] = args.teacher_tap
    cfg = distill_config(
        args.config,
        teacher_of(args),
        args.checkpoint,
        projection=args.projection,
        dim=args.dim,
        tap=args.tap,
        hook={'schedule': 'fade'} if args.fade else None,
        loss_weight=args.loss_weight,
        **options,
    )
    if args.teacher_scale > 1:
        print(enlarge_training(cfg, args.teacher_scale))
    if args.labels == 'none':
        print(drop_labels(cfg, args.unlabelled))
    elif args.unlabelled is not None:
        print(add_unlabelled(cfg, args.unlabelled, args.per_batch))
    if args.save_config:
        write_config(args.save_config, args.config, cfg)
        command = shlex.join(['python', 'tools/train.py', args.save_config])
        print(f'wrote {args.save_config}; train with: {command}')
        return
    # The plain student's checkpoints, in a folder of its name, have the same names.
    if cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / f'{Path(args.config).stem}_distilled')
    launch.train(cfg, args)


if __name__ == '__main__':
    cli.run(main)
