"""Draw the feature maps of teacher and students in the subspace, and their detections."""

import argparse
from pathlib import Path

from mmcv.transforms import Compose
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.device import get_device

from rdimkd_det import ConfigError
from rdimkd_det.commands import cli
from rdimkd_det.commands.checks import check_model
from rdimkd_det.commands.mistakes import errors_explained
from rdimkd_det.datasets.scaling import enlarged
from rdimkd_det.distiller.inference import trained_detector, trained_student
from rdimkd_det.files.configs import without_cache
from rdimkd_det.progress import with_progress
from rdimkd_det.reports.pictures.drawing import write_pictures
from rdimkd_det.reports.pictures.views import Viewer


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a distilled config')
    parser.add_argument('checkpoint', help='a checkpoint that its training wrote')
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE', help='image files')
    parser.add_argument(
        '--plain', metavar='CHECKPOINT', help='of a student trained without a teacher'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('features.png'),
        help='.png or .html; default: features.png',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='least score of a shown detection; default: 0.3',
    )
    args = parser.parse_args()
    if args.out.suffix not in ('.png', '.html'):
        raise ConfigError(f'--out must be a .png or .html file, got {args.out}.')
    for path in args.images:
        if not path.is_file():
            raise ConfigError(f'image {path} not found.')
    cli.check_out_file(args.out, '--out', folder_is_made=True)
    return args


def main() -> None:
    args = parse_args()
    cfg = cli.read_config_file(args.config)
    with errors_explained(cfg):
        viewer = build_viewer(cfg, args)
        views = [viewer(path) for path in with_progress(args.images, 'looking at images')]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_pictures(views, args.out)
    print(f'wrote {args.out}')


def build_viewer(cfg: Config, args: argparse.Namespace) -> Viewer:
    """Load the students and the teacher."""
    cfg = without_cache(cfg)
    check_model(cfg, training=False)
    cfg.test_dataloader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if not cfg.test_dataloader:
        raise ConfigError(
            f'config {args.config} has neither test_dataloader nor val_dataloader, whose pipeline '
            f'prepares the images.'
        )
    device = get_device()
    distilled = trained_student(cfg.model, args.checkpoint, who='student').to(device)
    plain = None
    if args.plain is not None:
        plain = trained_detector(cfg.model, args.plain, who='plain student').to(device)
    pipeline = enlarged(get_test_pipeline_cfg(cfg), distilled.distill.shrink.scale)
    return Viewer(distilled, plain, Compose(pipeline), args.score_thr)


if __name__ == '__main__':
    cli.run(main)
