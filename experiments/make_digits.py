"""Make the embedded data set: handwritten digits to detect, in COCO format."""

import argparse
import time

from rdimkd_det.commands import cli
from rdimkd_det.errors import ConfigError
from rdimkd_det.progress import counting_bar

from .digits.images import DigitsOptions
from .digits.making import is_made, make_digits


def image_size(text: str) -> tuple[int, int]:
    """Parse '96' or '128x96' as (width, height)."""
    sides = text.split('x')
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ConfigError(f'--image-size must be like 96 or 128x96, got {text!r}.')
    return int(sides[0]), int(sides[-1])


def parse_args() -> argparse.Namespace:
    default = DigitsOptions()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--out', default='data/digits', help='directory of the data set')
    parser.add_argument('--image-size', default='96x96', metavar='WxH', help='in pixels')
    parser.add_argument('--num-train', type=int, default=default.num_train, help='images')
    parser.add_argument('--num-val', type=int, default=default.num_val, help='images')
    pair = dict(type=int, nargs=2, metavar=('MIN', 'MAX'))
    parser.add_argument(
        '--digits-per-image', default=default.digits_per_image, help='number of digits', **pair
    )
    parser.add_argument(
        '--digit-size', default=default.digit_size, help='size of a digit in pixels', **pair
    )
    parser.add_argument('--seed', type=int, default=default.seed, help='seed of everything')
    parser.add_argument(
        '--force', action='store_true', help='replace a digits data set of other options'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    options = DigitsOptions(
        image_size=image_size(args.image_size),
        num_train=args.num_train,
        num_val=args.num_val,
        digits_per_image=tuple(args.digits_per_image),
        digit_size=tuple(args.digit_size),
        seed=args.seed,
    )
    was_made = is_made(args.out, options)
    start = time.monotonic()
    total = options.num_train + options.num_val
    with counting_bar('making digits', total, shown=not was_made) as advance:
        make_digits(args.out, options, args.force, advance)
    if was_made:
        print(f'{args.out} already exists, made with these options.')
        return
    print(
        f'{args.out}: {options.num_train} train and {options.num_val} val images made '
        f'in {time.monotonic() - start:.0f} s.'
    )


if __name__ == '__main__':
    cli.run(main)
