"""Export a trained student: weights and plain config in one small file, and optionally as ONNX."""

import argparse
from pathlib import Path

from rdimkd_det import ConfigError
from rdimkd_det.commands import cli
from rdimkd_det.export.formats import FORMATS
from rdimkd_det.export.student import read_student, write_student
from rdimkd_det.files.checkpoints import local_path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Export a trained student.')
    parser.add_argument('checkpoint', help='checkpoint of a distilled, or plain, training')
    parser.add_argument(
        '--out', required=True, metavar='F', help='.pth or .safetensors; its name gets a hash'
    )
    parser.add_argument('--onnx', metavar='F.onnx', help='write an ONNX model as well')
    parser.add_argument(
        '--end-to-end',
        action='store_true',
        help='the ONNX model takes 8-bit images, and returns boxes, scores and labels',
    )
    parser.add_argument(
        '--config', help='config of the training, if it is not beside the checkpoint'
    )
    args = parser.parse_args()
    if args.end_to_end and not args.onnx:
        raise ConfigError('--end-to-end is for an ONNX model; give its file: --onnx F.onnx.')
    for option, value, known in (('out', args.out, list(FORMATS)), ('onnx', args.onnx, ['.onnx'])):
        if value is not None and Path(value).suffix not in known:
            raise ConfigError(f'--{option} must be a {" or ".join(known)} file, got {value}.')
        if value is not None:
            cli.check_out_file(Path(value), f'--{option}', folder_is_made=True)
    return args


def main() -> None:
    args = parse_args()
    if args.onnx:
        # Imported before anything is written: the import reports missing packages.
        from rdimkd_det.export.onnx import check_raw_maps, export_onnx, write_raw_maps

        check, write = check_raw_maps, write_raw_maps
    if args.end_to_end:
        from rdimkd_det.export.end_to_end import check_detector as check
        from rdimkd_det.export.end_to_end import write_detector as write
    config = cli.read_config_file(args.config) if args.config else None
    student = read_student(args.checkpoint, config)
    model = student.build()
    if args.onnx:
        check(model, student)
    path, num_boxes = write_student(student, args.out)
    sizes = [it.stat().st_size for it in (path, local_path(args.checkpoint)) if it.is_file()]
    print(f'wrote {path}: {" of ".join(f"{size / 2**20:.1f} MiB" for size in sizes)}')
    print(f'all weights equal those of {args.checkpoint}, bit for bit')
    same = (
        f'{num_boxes} boxes are the same' if num_boxes else 'no box, so only weights are compared'
    )
    print(f'on a test image: {same}')
    for name, value in student.meta.get('metrics', {}).items():
        print(f'{name}: {value}')
    if args.onnx:
        print(export_onnx(model, student, Path(args.onnx), write))


if __name__ == '__main__':
    cli.run(main)
