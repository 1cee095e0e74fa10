"""HTML pages rendered by headless Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), ''
)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason='needs chromium')

# The page's policy forbids scripts, so a script outside its frame inspects it.
FRAME = """<!doctype html><body style="margin: 0">
<iframe style="border: 0" width="{width}" height="800" srcdoc="{page}"></iframe>
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
    """Render a page in Chromium and measure it.

    Args:
        page: The HTML.
        folder: A temporary folder.
        width: Width of the window in CSS pixels.
        dark: Whether the user prefers a dark page.

    Returns:
        'width' of the content, 'background' colour, addresses 'loaded', and number of images
        'broken'.
    """
    dom = _open(page, folder, width, '--dump-dom', *(['--force-dark-mode'] if dark else []))
    seen = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)[1]
    return json.loads(html.unescape(seen))


def screenshot(page: str, folder: Path, width: int = 360) -> np.ndarray:
    """Return a screenshot (H, width, 3) of a page in Chromium, BGR."""
    picture = folder / 'page.png'
    _open(page, folder, width, f'--screenshot={picture}', '--hide-scrollbars')
    return cv2.imread(str(picture))[:, :width]


def _open(page: str, folder: Path, width: int, *options: str) -> str:
    outer = folder / 'frame.html'
    outer.write_text(FRAME.format(width=width, page=html.escape(page)))
    command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', *options]
    command += [f'--user-data-dir={folder / "profile"}', '--virtual-time-budget=3000']
    command += ['--window-size=800,600', outer.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
