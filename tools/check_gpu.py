"""Check a machine's GPU: whether everything works there, and what distillation costs."""

import sys
from pathlib import Path

from rdimkd_det import ConfigError
from rdimkd_det.commands import cli

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    if not (ROOT / 'experiments').is_dir():
        raise ConfigError('needs the repository, for its tests and experiments; run it in a clone.')
    sys.path.insert(0, str(ROOT))
    from experiments.gpu import command

    command.main()


if __name__ == '__main__':
    cli.run(main)
