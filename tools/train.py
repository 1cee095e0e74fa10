"""Train a detector, distilled or plain: MMDetection's train.py, after checks of the config."""

import argparse

from rdimkd_det.commands import cli, launch


def main() -> None:
    parser = argparse.ArgumentParser(description='Train a detector, distilled or plain.')
    parser.add_argument('config', help="path or 'mmdet::...', e.g. configs/rdimkd_fcos_r50_r18.py")
    cli.add_common_arguments(parser)
    cli.add_training_arguments(parser)
    args = parser.parse_args()
    launch.train(cli.read_config_file(args.config), args)


if __name__ == '__main__':
    cli.run(main)
