"""Parses the config text in an untrusted checkpoint without running it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping

from mmengine.config import Config

from ..errors import ConfigError
from .configs import mappings

# Scopes that are loaded already; mmengine would import any other.
SCOPES = (None, 'mmdet', 'mmengine', 'mmcv')
# Any other value in `nms=dict(type=...)` of MMDetection's configs would be evaluated as Python.
NMS = ('nms', 'soft_nms', 'nms_match', 'nms_rotated', 'nms_quadri')
WARP_MODE = re.compile(r'cv2\.MOTION_[A-Z]+')
SHOWN = 100  # characters that a message quotes


def parse_config(text: str, who: str) -> Config:
    """Parse the text of ``Config.pretty_text``: assignments of literals and ``dict(...)``.

    mmengine's own ``Config.fromstring`` executes the text.

    Args:
        text (str): The text.
        who (str): Whose config it is, for messages.

    Raises:
        ConfigError: The text holds any other code, or names modules outside of MMDetection and
            this package.
    """
    try:
        content = {
            _target(statement): ast.literal_eval(_AsLiterals().visit(statement.value))
            for statement in ast.parse(text).body
        }
    except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError, MemoryError):
        raise ConfigError(
            f'{who}: its config is more than plain data, and is not run; give the file: --config.'
        ) from None
    _check_imports(content, who)
    _check_evaluated(content, who)
    try:
        return Config(content)
    except KeyError as error:  # a name that mmengine reserves, e.g. `filename`
        raise ConfigError(f'{who}: its config cannot be used: {error.args[0]}.') from error


def _target(statement: ast.stmt) -> str:
    (target,) = statement.targets
    return target.id


class _AsLiterals(ast.NodeTransformer):
    """Turns ``dict(a=1)``, ``dict({'a': 1})``, ``inf`` and ``nan`` into literals."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict':
            return node  # which literal_eval refuses
        if node.args:
            (mapping,) = node.args
            return node if node.keywords else mapping
        keys = [ast.Constant(keyword.arg) for keyword in node.keywords]
        return ast.Dict(keys=keys, values=[keyword.value for keyword in node.keywords])

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(float(node.id)) if node.id in ('inf', 'nan') else node


def _check_imports(content: Mapping, who: str) -> None:
    asked = [name for name in _custom_imports(content) if name != 'rdimkd_det']
    for node in mappings(content):
        # 'a.b.C' makes mmengine import a.b and call C, whatever that is: os.system, for example.
        asked += [v for v in (node.get('type'),) if isinstance(v, str) and '.' in v]
        asked += [v for v in map(node.get, ('_scope_', 'default_scope')) if v not in SCOPES]
    if asked:
        raise ConfigError(
            f'{who}: its config imports {_shown(asked)}, which could be any code; if you trust it, '
            f'give the file: --config.'
        )


def _custom_imports(content: Mapping) -> Iterable:
    entry = content.get('custom_imports') or {}
    names = (entry.get('imports') or ()) if isinstance(entry, Mapping) else entry
    return names if isinstance(names, (list, tuple, set)) else (names,)


def _check_evaluated(content: Mapping, who: str) -> None:
    """Refuse what MMDetection would run as Python although it looks like data."""
    run = {value for node in mappings(content) for value in _evaluated(node)}
    if run:
        raise ConfigError(
            f'{who}: its config has {_shown(run)} where MMDetection runs code; if you trust it, '
            f'give the file: --config.'
        )


def _evaluated(node: Mapping) -> Iterator[object]:
    kind, warp = node.get('type'), node.get('warp_mode')
    if isinstance(kind, str) and not kind.isidentifier():
        yield kind
    for nms in map(node.get, ('nms', 'nms_cfg')):
        if isinstance(nms, Mapping) and nms.get('type', 'nms') not in NMS:
            yield str(nms['type'])  # mmcv (2.1.0, OneDL 2.3.6): eval(type) in batched_nms
    if isinstance(warp, str) and not WARP_MODE.fullmatch(warp):
        yield warp  # mmdet (3.3.0, OneDL 3.5.1): eval in CameraMotionCompensation
    # mmdet's own distillers run the config and unpickle the checkpoint as soon as they are built.
    files = map(node.get, ('teacher_config', 'teacher_ckpt'))
    yield from (file for file in files if isinstance(file, str))


def _shown(values: Iterable) -> str:
    text = ', '.join(sorted(set(map(str, values))))
    return text if len(text) <= SHOWN else f'{text[:SHOWN]}...'
