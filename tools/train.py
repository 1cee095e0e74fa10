"""Train a detector, distilled or plain: MMDetection's train.py, with the mistakes found first."""

import argparse

from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from rdimkd_det import ConfigError, cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a detector, distilled or plain.')
    parser.add_argument('config', help='config file, e.g. configs/rdimkd_fcos_r50_r18.py')
    cli.add_common_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size, as auto_scale_lr in the config says',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without one, from the latest in the work directory',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    setup_cache_size_limit_of_dynamo()
    cfg = cli.load_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ConfigError(
                f'--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in {args.config}.'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    cli.check_before_run(cfg, training=True)
    cli.prepare_launch(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.train()


if __name__ == '__main__':
    cli.run(main)
