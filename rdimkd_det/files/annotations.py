"""The categories of a COCO annotation file, without reading the annotations."""

from __future__ import annotations

import json
import re
from mmap import ACCESS_READ, mmap

CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
# COCO's own files, of several hundred MB, have their categories at the end.
TAIL = 2**20
LONGEST = 2**24


def category_names(path: str) -> list | None:
    """Return the names of the categories in a COCO annotation file, None if they are not found.

    Errors in the file are left to the code that reads all of it.
    """
    try:
        with open(path, 'rb') as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            start = _start_of_categories(content)
            text = content[start : start + LONGEST].decode(errors='ignore') if start else ''
        return [category['name'] for category in json.JSONDecoder().raw_decode(text)[0]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _start_of_categories(content: mmap) -> int | None:
    tail = max(0, len(content) - TAIL)
    found = CATEGORIES.search(content, tail) or CATEGORIES.search(content)
    return found and found.end()
