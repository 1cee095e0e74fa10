"""The categories of an annotation file, read without the annotations."""

import json
from pathlib import Path

import pytest

from rdimkd_det.files import annotations
from rdimkd_det.files.annotations import category_names

PETS = [dict(id=3, name='cat'), dict(id=7, name='dög')]


def written(folder: Path, text: str) -> str:
    path = folder / 'pets.json'
    path.write_text(text, encoding='utf-8')
    return str(path)


@pytest.mark.parametrize('indent', [None, 1])
@pytest.mark.parametrize('ascii_only', [True, False])
@pytest.mark.parametrize('place', [0, 1, 2])
def test_category_names__anywhere_in_the_file(tmp_path, monkeypatch, place, ascii_only, indent):
    monkeypatch.setattr(annotations, 'TAIL', 40)
    parts = [('images', [dict(id=1)] * 50), ('annotations', [dict(id=1)] * 50)]
    parts.insert(place, ('categories', PETS))
    text = json.dumps(dict(parts), indent=indent, ensure_ascii=ascii_only)
    assert category_names(written(tmp_path, text)) == ['cat', 'dög']


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        '{"images": []}',
        '{"categories": null}',
        '{"categories": ["cat"]}',
        '{"categories": [{"id": 1}]}',
        '{"categories": [{"id": 1, "name": "ca',
        '{"a": "\\"categories\\": [1]"}',
    ],
)
def test_category_names__that_cannot_be_told(tmp_path, text):
    assert category_names(written(tmp_path, text)) is None
    assert category_names(str(tmp_path)) is None
    assert category_names(str(tmp_path / 'nowhere.json')) is None
