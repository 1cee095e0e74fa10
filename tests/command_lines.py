"""What tests of the command lines share."""

from collections.abc import Mapping

from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from runs import fcos


def without_outer_make(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what `make test` hands on to a make that a test calls."""
    handed_on = ('MAKEFLAGS', 'MAKEOVERRIDES', 'MAKELEVEL', 'STACK', 'OPS', 'PYTHON')
    return {name: value for name, value in environment.items() if name not in handed_on}


def one_line(tool: str, stderr: str) -> str:
    lines = stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f'{tool}: '), stderr
    return lines[0]


def plain_weights() -> dict:
    """Return the state dict of plain.py's detector."""
    init_default_scope('mmdet')
    return dict(MODELS.build(fcos()).state_dict())
