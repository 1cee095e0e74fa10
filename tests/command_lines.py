"""What tests of the command lines share."""

from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from runs import fcos


def one_line(tool: str, stderr: str) -> str:
    lines = stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f'{tool}: '), stderr
    return lines[0]


def plain_weights() -> dict:
    """Return the state dict of plain.py's detector."""
    init_default_scope('mmdet')
    return dict(MODELS.build(fcos()).state_dict())
