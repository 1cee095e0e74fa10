"""A self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from math import ceil

# The page may fetch nothing, even if an embedded drawing asks for it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

CSS = """
:root { color-scheme: light dark; --text: #1d2330; --soft: #5c6475; --page: #ffffff;
  --card: #f5f6f9; --line: #dde1ea; --accent: #2f7fe0; --up: #147a43; --down: #b3402f;
  --shade: #10131a4d; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9f0; --soft: #9aa3b5; --page: #14171e; --card: #1d212b; --line: #313747;
    --accent: #6aa8f7; --up: #4cd58d; --down: #ff8d7c; --shade: #e6e9f040; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 3rem; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 0.6rem; }
p { margin: 0.4rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: 0.88rem; }
/* A shadow at an edge behind which there is more: the page's colour moves along and covers it. */
.scroll { overflow-x: auto; background:
    linear-gradient(to right, var(--page) 1rem, transparent) left / 2rem 100% no-repeat local,
    linear-gradient(to left, var(--page) 1rem, transparent) right / 2rem 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) left / 1rem 100% no-repeat scroll,
    linear-gradient(to left, var(--shade), transparent) right / 1rem 100% no-repeat scroll; }
.wide img { min-width: 36rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-size: 0.85rem; font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.charts { display: grid; gap: 1.2rem; grid-template-columns: repeat(var(--wide), minmax(0, 1fr)); }
@media (max-width: 60rem) {
  .charts { grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); } }
.charts svg { width: 100%; height: auto; display: block; }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: 0.9rem; min-width: 0; }
.examples { display: grid; gap: 1rem; max-width: 54rem; }
.row { display: grid; gap: 0.5rem; grid-template-columns: repeat(var(--wide), 1fr); }
.row div { min-width: 0; overflow-wrap: anywhere; font-size: 0.8rem; color: var(--soft); }
.boxes { display: block; width: 100%; border-radius: 4px; }
.boxes rect { fill: none; stroke-width: 1; }
.boxes rect.halo { stroke: #10131a; stroke-width: 2; stroke-dasharray: none; }
.boxes text { font: 700 6.5px system-ui, sans-serif; paint-order: stroke; stroke: #10131a;
  stroke-width: 1.6px; stroke-linejoin: round; }
.boxes .below { dominant-baseline: hanging; }
.truth rect { stroke: #ffffff; } .truth text { fill: #ffffff; }
.right rect { stroke: #46e08a; } .right text { fill: #46e08a; }
.wrong rect { stroke: #ff7a66; stroke-dasharray: 3 2; } .wrong text { fill: #ff9a8a; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem; font-size: 0.9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
.setting { border-top: 1px solid var(--line); padding: 0.4rem 0; }
.setting dl { margin: 0.2rem 0; }
details { margin: 0.8rem 0; } summary { cursor: pointer; color: var(--accent); }
tr.change td { color: var(--soft); font-size: 0.88rem; }
tr.change td.up, .up { color: var(--up); } tr.change td.down, .down { color: var(--down); }
img { max-width: 100%; height: auto; border-radius: 4px; }
@media (max-width: 34rem) {
  body { padding: 1rem 0.8rem 2rem; }
  th, td { padding: 0.4rem 0.25rem; font-size: 0.8rem; }
  th { font-size: 0.72rem; }
  td:first-child, td:last-child, th:last-child { white-space: normal; }
  figure { padding: 0.6rem; }
  .row { gap: 0.3rem; grid-template-columns: repeat(var(--narrow), 1fr); }
  tr.change td { font-size: 0.75rem; }
  .wide { display: flex; }
  .wide::after { content: ''; flex: 0 0 1.2rem; position: sticky; right: 0;
    background: linear-gradient(to left, var(--shade), transparent); }
  .boxes text { font-size: 12px; }
  .boxes.fine text { font-size: 18px; }
  .boxes .score { display: none; }
}
"""


def page(title: str, sections: list[str]) -> str:
    """Build a complete HTML document of a plain title and sections of HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<style>{CSS}</style></head>\n<body>\n'
        f'<h1>{escape(title)}</h1>\n' + '\n'.join(sections) + '\n</body></html>\n'
    )


def section(title: str, *content: str) -> str:
    """Return a section: a heading and HTML parts."""
    return f'<section><h2>{escape(title)}</h2>\n' + '\n'.join(content) + '\n</section>'


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f'<p class="soft">{escape(text)}</p>'


def definitions(entries: dict[str, object]) -> str:
    """Return a list of names and values, both plain text."""
    items = [f'<dt>{escape(name)}</dt><dd>{escape(str(it))}</dd>' for name, it in entries.items()]
    return f'<dl>{"".join(items)}</dl>'


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] = ()
) -> str:
    """Return a table of plain text that scrolls sideways where the page is too narrow.

    A cell that begins with + or the minus sign U+2212 is a change, and coloured. ``classes`` are
    the CSS classes of the rows.
    """
    head = ''.join(f'<th>{escape(column)}</th>' for column in columns)
    body = ''
    for row, css_class in zip_longest(rows, classes, fillvalue=''):
        cells = ''.join(f'<td{_direction(cell)}>{escape(cell)}</td>' for cell in row)
        body += f'<tr class="{css_class}">{cells}</tr>\n'
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def _direction(cell: str) -> str:
    return {'+': ' class="up"', '\u2212': ' class="down"'}.get(cell[:1], '')


def equal_columns(count: int, most: int) -> int:
    """Return the number of columns, at most ``most``, that fills a grid's rows most evenly."""
    return ceil(count / max(1, ceil(count / most)))


def folded(summary: str, content: str) -> str:
    """Return HTML that is hidden until its summary, plain text, is clicked."""
    return f'<details><summary>{escape(summary)}</summary>{content}</details>'
