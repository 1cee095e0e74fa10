"""Write docs/api.md from the docstrings, and the map of the code into docs/contributing.md."""

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import rdimkd_det
from rdimkd_det import ConfigError, functional, schedule
from rdimkd_det.commands import cli
from rdimkd_det.files.atomic import write_text

ROOT = Path(__file__).parents[1]
PACKAGE = 'rdimkd_det'
HEADER = """# API reference

Made from the docstrings by `python tools/make_api_docs.py`; a test compares. Configs are in
[config.md](config.md).
"""
BEGIN, END = '<!-- map: begin (tools/make_api_docs.py) -->', '<!-- map: end -->'
SECTIONS = ('Args', 'Attributes', 'Returns', 'Yields', 'Raises', 'Example', 'Examples')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 if out of date')
    args = parser.parse_args()
    changed = {path: text for path, text in pages(ROOT).items() if read(path) != text}
    for path, text in changed.items():
        print(f'{path.relative_to(ROOT)} {"is out of date" if args.check else "written"}')
        if not args.check:
            write_text(path, text)
    sys.exit(1 if args.check and changed else 0)


def pages(root: Path) -> dict[Path, str]:
    """Return the files that this tool writes, with their content."""
    contributing = root / 'docs' / 'contributing.md'
    maps = [code_map(root / name) for name in (PACKAGE, 'experiments')]
    return {
        root / 'docs' / 'api.md': api_page(),
        contributing: with_map(read(contributing), '\n\n'.join(maps)),
    }


def read(path: Path) -> str:
    """Read a text file; '' if it does not exist."""
    return path.read_text(encoding='utf-8') if path.is_file() else ''


# The map


def code_map(package: Path) -> str:
    """Return a table with a heading per folder and a line per module, from the docstrings."""
    folders: dict[str, list[str]] = {}
    for path in sorted(package.rglob('*.py')):
        name = path.relative_to(package.parent)
        docstring = ast.get_docstring(ast.parse(read(path)))
        if docstring is None:
            raise ConfigError(f'{name} has no docstring to put on the map.')
        text = as_markdown(summary(docstring))
        folder = name.parent.as_posix()
        line = text if path.name == '__init__.py' else f'| `{path.stem}` | {text} |'
        folders.setdefault(folder, []).append(line)
    return '\n\n'.join(
        f'**`{folder}/`** {lines[0]}\n\n| Module | |\n|---|---|\n' + '\n'.join(lines[1:])
        for folder, lines in sorted(folders.items())
    )


def with_map(page: str, table: str) -> str:
    """Replace what is between the two markers of a page."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ConfigError(f'docs/contributing.md needs the lines {BEGIN} and {END}, once each.')
    before, rest = page.split(BEGIN)
    return f'{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}'


# The reference


def api_page() -> str:
    """Return the API reference: all public names with their signatures and docstrings."""
    names = [name for name in rdimkd_det.__all__ if name not in ('__version__', 'functional')]
    parts = [HEADER, '## `rdimkd_det`\n']
    parts += [describe(f'rdimkd_det.{name}', getattr(rdimkd_det, name)) for name in sorted(names)]
    for module in (functional, schedule):
        parts.append(f'## `{module.__name__}`\n\n{as_markdown(inspect.getdoc(module))}\n')
        parts += [describe(f'{module.__name__}.{name}', x) for name, x in own_names(module)]
    return '\n'.join(parts)


def own_names(module: object) -> Iterator[tuple[str, object]]:
    """Yield the public functions and classes that a module or its folder defines."""
    for name, value in vars(module).items():
        home = getattr(value, '__module__', None) or ''
        if not name.startswith('_') and f'{home}.'.startswith(f'{module.__name__}.'):
            yield name, value


def describe(name: str, item: object) -> str:
    """Return heading, signature and docstring of a function, or of a class and its methods."""
    text = f'### `{name}`\n\n{signature(name, item)}{sections(inspect.getdoc(item))}\n'
    if not inspect.isclass(item):
        return text
    return text + ''.join(
        f'\n**`{member}`**{arguments(value)}: {as_markdown(summary(inspect.getdoc(value)))}\n'
        for member, value in vars(item).items()
        if not member.startswith('_') and inspect.getdoc(value) and is_own(item, member)
    )


def is_own(cls: type, member: str) -> bool:
    """Check that a method is this package's own, not an override of a method of its host."""
    value = vars(cls)[member]
    hosts = [base for base in cls.__mro__[1:] if not base.__module__.startswith(PACKAGE)]
    overrides = member != 'forward' and any(member in vars(base) for base in hosts)
    return (inspect.isfunction(value) or isinstance(value, property)) and not overrides


def summary(docstring: str) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return docstring.split('\n\n')[0].replace('\n', ' ')


def arguments(value: object) -> str:
    """Return a method's argument names in parentheses; '' for a property."""
    if isinstance(value, property):
        return ''
    return f'`({", ".join(list(inspect.signature(value).parameters)[1:])})`'


def signature(name: str, item: object) -> str:
    """Return the call as a code block, with one argument per line if there are more than two."""
    if inspect.isclass(item) and issubclass(item, Exception):
        return ''
    own_new = inspect.isclass(item) and '__new__' in vars(item)
    parameters = list(inspect.signature(item.__new__ if own_new else item).parameters.values())
    shown = [argument(parameter) for parameter in (parameters[1:] if own_new else parameters)]
    inner = ', '.join(shown)
    if len(shown) > 2:
        inner = '\n    ' + ',\n    '.join(shown) + ',\n'
    return f'```python\n{name.rpartition(".")[2]}({inner})\n```\n\n'


def argument(parameter: inspect.Parameter) -> str:
    """Return an argument as written in a definition."""
    stars = {parameter.VAR_POSITIONAL: '*', parameter.VAR_KEYWORD: '**'}.get(parameter.kind, '')
    text = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f': {parameter.annotation}'
    if parameter.default is parameter.empty:
        return text
    return f'{text} = {parameter.default!r}' if ':' in text else f'{text}={parameter.default!r}'


def sections(docstring: str) -> str:
    """Convert a Google docstring to Markdown: paragraphs, lists of arguments, code examples."""
    pattern = rf'^({"|".join(SECTIONS)}):\n'
    text, *rest = re.split(pattern, docstring, flags=re.MULTILINE)
    parts = [as_markdown(text.strip())]
    for title, body in zip(rest[::2], rest[1::2]):
        body = textwrap.dedent(body).strip()
        if title.startswith('Example'):
            parts.append(f'{title}:\n\n```pycon\n{body}\n```')
        elif title in ('Returns', 'Yields'):
            parts.append(f'{title}: {as_markdown(" ".join(body.split()))}')
        else:
            parts.append(f'{title}:\n\n' + '\n'.join(map(item_line, items(body))))
    return '\n\n'.join(parts)


def items(body: str) -> list[str]:
    """Return the entries of an ``Args:`` section, each on one line."""
    return [' '.join(entry.split()) for entry in re.split(r'\n(?=\S)', body)]


def item_line(entry: str) -> str:
    head, _, text = entry.partition(': ')
    name, _, kind = head.partition(' ')
    return f'- `{name}` {kind}: {as_markdown(text)}'.replace(' :', ':')


def as_markdown(text: str) -> str:
    """Convert the few reStructuredText constructs of the docstrings to Markdown."""
    text = re.sub(r':(?:func|class|meth|mod|math):`~?([^`]+)`', r'`\1`', text)
    text = re.sub(r'^\.\. math:: (.+)$', r'    \1', text, flags=re.MULTILINE)
    return text.replace('``', '`').replace('::\n\n', ':\n\n')


if __name__ == '__main__':
    cli.run(main)
