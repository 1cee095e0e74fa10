"""Config texts of strangers, read without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from mmengine.config import Config

from ..errors import ConfigError

# Names that mean this package and its host to mmengine; any other would be imported.
SCOPES = (None, 'mmdet', 'mmengine', 'mmcv')


def parse_config(text: str, who: str) -> Config:
    """Read the text of ``Config.pretty_text``: assignments of literals and ``dict(...)``.

    mmengine's own ``Config.fromstring`` executes the text.

    Args:
        text (str): The text.
        who (str): Whose config it is, for messages.

    Raises:
        ConfigError: It holds any other code, or asks for modules beside MMDetection's and this
            package's.
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
    return Config(content)


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
    imports = (content.get('custom_imports') or {}).get('imports') or ()
    asked = {imports} if isinstance(imports, str) else set(imports)
    asked -= {'rdimkd_det'}
    for node in _mappings(content):
        # 'a.b.C' makes mmengine import a.b and call C, whatever that is: os.system, for example.
        asked |= {v for v in (node.get('type'),) if isinstance(v, str) and '.' in v}
        asked |= {node.get(key) for key in ('_scope_', 'default_scope')} - set(SCOPES)
    if asked:
        raise ConfigError(
            f'{who}: its config imports {", ".join(sorted(map(str, asked)))}, which could be any '
            f'code; if you trust it, give the file: --config.'
        )


def _mappings(node: object) -> Iterator[Mapping]:
    if isinstance(node, Mapping):
        yield node
        node = node.values()
    if not isinstance(node, (str, bytes)) and hasattr(node, '__iter__'):
        for child in node:
            yield from _mappings(child)
