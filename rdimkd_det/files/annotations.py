"""COCO annotation files: what their entries need, and their categories without the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from mmap import ACCESS_READ, mmap

CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
# COCO's own files, of several hundred MB, have their categories at the end.
TAIL = 2**20
LONGEST = 2**24
# The lists of a COCO file: what an entry is, and the keys that it needs.
LISTS = {
    'annotations': ('annotation', ('id', 'image_id', 'category_id', 'bbox', 'area')),
    'images': ('image', ('id', 'file_name', 'width', 'height')),
    'categories': ('category', ('id', 'name')),
}


def category_names(path: str) -> list | None:
    """Return the names of the categories in a COCO annotation file, None if they are not found.

    Errors in the file are left to the code that reads all of it.
    """
    try:
        with open(path, 'rb') as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            tail = max(0, len(content) - TAIL)
            found = CATEGORIES.search(content, tail) or CATEGORIES.search(content)
            start = found.end() if found else len(content)
            text = content[start : start + LONGEST].decode(errors='ignore')
        names = [category['name'] for category in json.JSONDecoder().raw_decode(text)[0]]
        set(names)  # a list, for example, is no name
        return names
    except (OSError, ValueError, KeyError, TypeError):
        return None


def listed_keys(keys: Sequence[str]) -> str:
    """Return the keys that an entry needs as text, with the form of a box."""
    listed = f'{", ".join(keys[:-1])} and {keys[-1]}'
    return listed.replace('bbox', 'bbox ([x, y, width, height])')
