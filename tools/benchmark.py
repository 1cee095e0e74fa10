"""Measure the cost of distillation: time, memory and operations of a plain and a distilled step."""

from rdimkd_det import ConfigError
from rdimkd_det.benchmark.command import make_parser, run
from rdimkd_det.benchmark.operations import count_operations
from rdimkd_det.benchmark.steps import compare_with_floor, step_pieces
from rdimkd_det.benchmark.subject import Subject
from rdimkd_det.benchmark.tables import print_report
from rdimkd_det.commands import cli
from rdimkd_det.stopwatch import measure

PARTS = ('steps', 'operations')


def main() -> None:
    parser = make_parser('Measure what distillation costs.')
    parser.add_argument('--only', choices=(*PARTS, 'losses'), help='one part of the measurement')
    args = parser.parse_args()
    if args.only == 'losses':
        raise ConfigError(
            'the losses are compared in a clone of the repository, by: '
            'python -m experiments.compare_losses CONFIG.'
        )
    wanted = [args.only] if args.only else PARTS

    def measure_parts(subject: Subject) -> dict:
        numbers = {}
        if 'steps' in wanted:
            costs = measure(step_pieces(subject), args.rounds, subject.device)
            numbers = {'rounds': args.rounds, **compare_with_floor(costs)}
        if 'operations' in wanted:
            numbers['operations'] = count_operations(subject)
        return numbers

    run(args, measure_parts, print_report)


if __name__ == '__main__':
    cli.run(main)
