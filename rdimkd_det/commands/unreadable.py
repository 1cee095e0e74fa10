"""Names files and folders that cannot be read or written, which MMDetection often does not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config

from ..compat import name_unreadable_images
from ..errors import ConfigError, named_file
from ..files.configs import annotation_path, mappings
from .annotations import annotation_mistake


@contextmanager
def unreadable_files_named(cfg: Config) -> Iterator[None]:
    """Name the file that an exception in the block is about.

    Args:
        cfg (Config): The run's config, which says where annotations are.

    Raises:
        ConfigError: Replaces an ``OSError`` that names a file, and any error in annotations.
        TrainingStoppedError: An image cannot be read.
    """
    name_unreadable_images()  # before any data loader has started its workers
    try:
        yield
    except json.JSONDecodeError as error:
        for path in _annotation_files(cfg._cfg_dict.to_dict()):
            if path.is_file() and path.read_text(errors='replace') == error.doc:
                raise ConfigError(f'annotations {path} {_damage(error)}.') from error
        raise
    except OSError as error:
        if named_file(error) is None:
            raise
        raise ConfigError(named_file(error)) from error
    except Exception as error:
        mistake = annotation_mistake(error)
        if mistake is None:
            raise
        raise mistake from error


def _damage(error: json.JSONDecodeError) -> str:
    if error.doc.startswith('\ufeff'):
        return 'begin with a byte order mark; save the file as UTF-8 without one'
    return f'are cut off or damaged: {error}'


def _annotation_files(cfg: Mapping) -> Iterator[Path]:
    """Yield the annotation files of datasets, with their roots, and of metrics."""
    for node in mappings(cfg):
        path = annotation_path(node)
        if path is not None:
            yield Path(path)
