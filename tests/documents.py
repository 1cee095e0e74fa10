"""Parsing of the documentation: code blocks, commands, links and headings."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from runs import REPOSITORY

DOCUMENTS = sorted([REPOSITORY / 'README.md', *REPOSITORY.glob('docs/*.md')])
SHELLS = ('bash', 'sh', 'shell', 'console')
# Lines of unlabelled blocks and text in backticks are commands if they begin like this.
COMMAND = re.compile(
    r'(\$ |(\w+=\S+ )*(python3? (tools/|examples/|-m experiments)|tools/\w+\.sh |make \w|'
    r'pip install |mim |wget |\.ci/run))'
)


@dataclass(frozen=True)
class Block:
    """A code block of a document; ``language`` is '' for an indented or unlabelled block."""

    document: str
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command in a document; ``words`` leaves out the variables that it sets."""

    document: str
    text: str

    @property
    def words(self) -> list[str]:
        words = shlex.split(self.text, comments=True)
        while words and re.match(r'\w+=', words[0]):
            words.pop(0)
        return words

    @property
    def is_synopsis(self) -> bool:
        """Whether it is a usage line with placeholders, such as ``[--out F]`` or ``IMAGE...``."""
        return '[-' in self.text or '...' in self.text

    def __str__(self) -> str:
        return f'{self.document}: {self.text}'


def blocks(document: Path) -> list[Block]:
    """Return all code blocks of a document, in order."""
    text, name = document.read_text(encoding='utf-8'), document.name
    fence = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
    indented = re.compile(r'(?<=\n\n)((?: {4}.*\n|\n(?= {4}))+)')
    found = [(m.start(), Block(name, m[1], m[2])) for m in fence.finditer(text)]
    rest = fence.sub(lambda match: re.sub(r'[^\n]', '.', match[0]), text)
    found += [(m.start(), Block(name, '', m[1])) for m in indented.finditer(rest)]
    return [block for _, block in sorted(found, key=lambda pair: pair[0])]


def commands(document: Path) -> list[Command]:
    """Return all commands of a document: those in blocks, then those within sentences."""
    found = []
    for block in blocks(document):
        if block.language in (*SHELLS, ''):
            for line in block.text.replace('\\\n', ' ').splitlines():
                line = line.strip()
                is_command = block.language in SHELLS and line and not line.startswith('#')
                if COMMAND.match(line) or (is_command and '$ ' not in block.text):
                    found.append(line.removeprefix('$ '))
    text = re.sub(r'^```.*?^```$', '', document.read_text(encoding='utf-8'), flags=re.M | re.S)
    found += [quote for quote in re.findall(r'`([^`\n]+)`', text) if COMMAND.match(quote)]
    return [Command(document.name, text) for text in dict.fromkeys(found)]


def links(document: Path) -> list[str]:
    """Return the targets of a document's links that are not URLs."""
    text = re.sub(r'^```.*?^```$', '', document.read_text(encoding='utf-8'), flags=re.M | re.S)
    targets = re.findall(r'\]\(([^)\s]+)\)', text)
    return [target for target in targets if '://' not in target]


def headings(document: Path) -> list[str]:
    """Return the texts of a document's headings."""
    text = re.sub(r'^```.*?^```$', '', document.read_text(encoding='utf-8'), flags=re.M | re.S)
    return re.findall(r'^#+ (.+)$', text, flags=re.MULTILINE)


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
