"""Imports follow the layers of docs/architecture.md: none goes up, and none is circular."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'rdimkd_det'
PATHS = [path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts]


def module_of(path: Path) -> str:
    """Return a file's dotted module name without the package's; '' for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_of(path): path for path in PATHS}


def floors() -> dict[str, int]:
    """Read the floor of each module or folder from the table in docs/architecture.md."""
    rows = re.findall(
        r'^\| (\d) \| (.+?) \|', (ROOT / 'docs/architecture.md').read_text('utf-8'), re.MULTILINE
    )
    return {name: int(floor) for floor, names in rows for name in re.findall(r'`(\S+)`', names)}


def imported_by(module: str) -> set[str]:
    """Return the package's modules that a module imports, at its top or inside functions."""
    path = MODULES[module]
    home = ['rdimkd_det', *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            base = '.'.join([*base, *filter(None, [node.module])])
            names = [f'{base}.{alias.name}' for alias in node.names]
        else:
            continue
        for name in names:
            own = name.partition('rdimkd_det.')[2]
            # `from .names import explain` is the module `names`; `from . import x` may be one too.
            found.add(own if own in MODULES else own.rpartition('.')[0])
    return found - {module, ''}


def floor_of(module: str) -> int:
    table = floors()
    return table.get(module) or table[module.split('.')[0]]


def test_floors__table_names_each_module_or_folder_once():
    named = set(floors())
    assert named <= set(MODULES)
    assert {module.split('.')[0] for module in MODULES if module} <= named
    assert floors()['errors'] == 1 and floors()['reports'] == 6


@pytest.mark.parametrize('module', sorted(filter(None, MODULES)))
def test_imports__go_down(module):
    up = {name for name in imported_by(module) if floor_of(name) > floor_of(module)}
    assert not up, f'{module} (floor {floor_of(module)}) imports from above: {sorted(up)}'


@pytest.mark.parametrize('module', sorted(MODULES))
def test_imports__of_the_package_itself_are_relative(module):
    nodes = list(ast.walk(ast.parse(MODULES[module].read_text(encoding='utf-8'))))
    named = [it.name for node in nodes if isinstance(node, ast.Import) for it in node.names]
    named += [it.module for it in nodes if isinstance(it, ast.ImportFrom) and not it.level]
    absolute = [name for name in named if name.split('.')[0] == 'rdimkd_det']
    assert not absolute, f'{module} imports absolutely: {absolute}; write from . or from ..'


@pytest.mark.parametrize('module', sorted(MODULES))
def test_imports__of_the_experiments_there_are_none(module):
    """They are not installed, so that what imports them would end in a traceback there."""
    nodes = list(ast.walk(ast.parse(MODULES[module].read_text(encoding='utf-8'))))
    named = [it.name for node in nodes if isinstance(node, ast.Import) for it in node.names]
    named += [it.module for it in nodes if isinstance(it, ast.ImportFrom) and not it.level]
    assert 'experiments' not in {name.split('.')[0] for name in named}


def test_imports__go_in_no_circle():
    # Raises CycleError otherwise. The package's own front page imports everything.
    order = list(TopologicalSorter({m: imported_by(m) for m in MODULES if m}).static_order())
    assert order.index('functional') < order.index('losses') < order.index('distiller')
