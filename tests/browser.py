"""A page as headless Chromium shows it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), ''
)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason='needs chromium')

# The page's own policy forbids scripts, so that it is looked at from outside of its frame.
FRAME = """<!doctype html><body><iframe width="{width}" height="800" srcdoc="{page}"></iframe>
<pre id="seen"></pre><script>
const frame = document.querySelector('iframe');
frame.onload = () => {{
  const inside = frame.contentDocument, root = inside.documentElement;
  document.querySelector('#seen').textContent = JSON.stringify({{
    width: root.scrollWidth,
    background: getComputedStyle(inside.body).backgroundColor,
    loaded: frame.contentWindow.performance.getEntriesByType('resource')
      .map(entry => entry.name).filter(name => !name.startsWith('data:')),
    broken: [...inside.images].filter(image => !image.naturalWidth).length,
  }});
}};
</script>"""


def look_at(page: str, folder: Path, width: int = 360, dark: bool = False) -> dict:
    """What Chromium makes of a page in a window of a width.

    Args:
        page: The HTML.
        folder: A temporary folder.
        width: Of the window, in CSS pixels.
        dark: Whether the user prefers a dark page.

    Returns:
        'width' that the content takes, 'background' colour, addresses 'loaded', images 'broken'.
    """
    outer = folder / 'frame.html'
    outer.write_text(FRAME.format(width=width, page=html.escape(page)))
    command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom']
    command += [f'--user-data-dir={folder / "profile"}', '--virtual-time-budget=3000']
    command += ['--force-dark-mode'] if dark else []
    done = subprocess.run(
        [*command, outer.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    return json.loads(html.unescape(seen))
