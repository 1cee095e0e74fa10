"""Evaluate a checkpoint: MMDetection's test.py. A distilled config needs no teacher here."""

import argparse
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, ConfigDict

from rdimkd_det import ConfigError
from rdimkd_det.commands import cli, launch
from rdimkd_det.commands.mistakes import errors_explained
from rdimkd_det.files.configs import leaf_datasets


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evaluate a detector.')
    parser.add_argument('config', help='the distilled config, or a plain one')
    parser.add_argument('checkpoint', help="student's checkpoint")
    cli.add_common_arguments(parser)
    parser.add_argument('--out', help='write the predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show painted images in a window')
    parser.add_argument('--show-dir', help='write painted images to WORK_DIR/<time>/SHOW_DIR')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per shown image')
    parser.add_argument('--tta', action='store_true', help='average over flipped images as well')
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out must be a .pkl file, got {args.out}.')
    if args.out is not None:
        cli.check_out_file(Path(args.out), '--out', folder_is_made=True)
    return args


def main() -> None:
    args = parse_args()
    cfg = cli.read_config_file(args.config)
    launch.apply_common_arguments(cfg, args)
    if (args.show or args.show_dir) and not (cfg.get('default_hooks') or {}).get('visualization'):
        raise ConfigError(
            "--show and --show-dir need default_hooks.visualization=dict(type='"
            "DetVisualizationHook') in the config."
        )
    cfg.load_from, cfg.resume = args.checkpoint, False
    _, data = launch.check_before_run(cfg, training=False)
    # Imported after the checks, because importing all of mmdet takes seconds.
    from mmdet.engine.hooks.utils import trigger_visualization_hook
    from mmdet.evaluation import DumpDetResults

    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        add_test_time_augmentation(cfg)
    if args.out is not None:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    runner = launch.build_runner(cfg)
    if args.out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    for line in data.lines():
        runner.logger.warning(line)
    with errors_explained(cfg, runner):
        runner.test()


def add_test_time_augmentation(cfg: Config) -> None:
    """Wrap the model for test-time augmentation, by horizontal flips if the config names none."""
    datasets = list(leaf_datasets(cfg.test_dataloader.dataset))
    if 'tta_pipeline' not in cfg:
        meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        pack = dict(type='PackDetInputs', meta_keys=(*meta_keys, 'flip', 'flip_direction'))
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        cfg.tta_pipeline = deepcopy(datasets[0].pipeline[:-1])
        cfg.tta_pipeline.append(dict(type='TestTimeAug', transforms=[flips, [pack]]))
    if 'tta_model' not in cfg:
        nms = dict(type='nms', iou_threshold=0.5)
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=nms, max_per_img=100))
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline


if __name__ == '__main__':
    cli.run(main)
