"""Reports in one line what fails in a run because of its config, its annotations or a file."""

from __future__ import annotations

import json
import reprlib
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..data_check.coco_file import read_json
from ..errors import ConfigError, TrainingStoppedError, named_file
from ..files.annotations import LISTS, listed_keys
from ..files.configs import annotation_path, mappings
from ..host.patches import name_unreadable_images
from ..options import explain, listed

# What else an evaluator reads of an annotation.
EVALUATED = 'iscrowd'
# Functions of mmdet and pycocotools that read annotations: of data sets, and of metrics, which read
# some entries only once there are detections.
READERS = ('load_data_list', 'createIndex', 'evaluate', 'computeIoU', 'evaluateImg', '_prepare')
# What a wrong config raises whenever an entry is first used; other types may have other causes.
OF_CONFIGS = (KeyError, TypeError, AttributeError, NameError, ImportError, AssertionError)
# These say by themselves what to do, or have nobody to say it to.
CLEAR = (ConfigError, FloatingPointError, TrainingStoppedError, BrokenPipeError)


class FirstPass(Hook):
    """Tells whether a run is still in its first iteration or validation, which try the config."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.not_over, self.validated = True, False

    def after_train_iter(self, *args, **kwargs) -> None:
        self.not_over = False

    def before_val_epoch(self, runner: Runner) -> None:
        self.not_over = not self.validated

    def after_val_epoch(self, *args, **kwargs) -> None:
        self.not_over, self.validated = False, True


@contextmanager
def errors_explained(cfg: Config, runner: Runner | None = None) -> Iterator[None]:
    """Turn an exception in the block into a ``ConfigError`` of one line.

    Args:
        cfg (Config): The config that the block uses.
        runner (Runner, optional): Runs in the block. Its later errors that are neither of the
            config nor of data are passed on; the traceback of the others goes to a file beside its
            log.
    """
    name_unreadable_images()  # before any data loader has started its workers
    first_pass = FirstPass()
    if runner is not None:
        runner.register_hook(first_pass)
    try:
        yield
    except CLEAR:
        raise
    except Exception as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # mmengine's bare except hides Ctrl-C
            raise error.__context__ from None
        line = _of_file(error, cfg)
        if line is None and runner is not None:
            if not (first_pass.not_over or isinstance(error, OF_CONFIGS) or _of_data(error)):
                raise
            file = Path(runner.log_dir, f'error_rank{get_rank()}.txt')
            file.write_text(traceback.format_exc())
            line = f'the config cannot be run: {explain(error)} (traceback: {file})'
        raise ConfigError(line or f'the config cannot be run: {explain(error)}') from error


def _of_data(error: Exception) -> bool:
    """Return whether an error comes from reading or evaluating data, which each batch may do."""
    if 'in DataLoader worker process' in str(error):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = (frame.f_locals.get('self') for frame in frames)
    return any(isinstance(owner, (BaseDataset, BaseMetric, BaseTransform)) for owner in owners)


def _of_file(error: Exception, cfg: Config) -> str | None:
    """Describe an error by the file that it is about, which MMDetection often does not name."""
    if isinstance(error, OSError):
        return named_file(error)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in frames:
        if frame.f_code.co_name == '_serialize_data' and not frame.f_locals['self'].data_list:
            return _nothing_left(frame.f_locals['self'])
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    for frame in frames:
        if frame.f_code.co_name == 'load_data_list' and 'txt_file' in frame.f_locals:
            return _of_text(error, key, frame.f_locals['txt_file'])
    known = [EVALUATED, *LISTS, *(name for _, keys in LISTS.values() for name in keys)]
    reading = key is None and any(frame.f_code.co_name in READERS for frame in frames)
    if not (key in known or reading or isinstance(error, json.JSONDecodeError)):
        return None  # without reading the files, which may be large
    # Of datasets, with their roots, and of metrics.
    paths = filter(None, map(annotation_path, mappings(cfg._cfg_dict.to_dict())))
    for path in filter(Path.is_file, map(Path, paths)):
        text = path.read_text(errors='replace')
        if isinstance(error, json.JSONDecodeError):
            if text == error.doc:
                read_json(path)  # which tells what is wrong with it
            continue
        what = _lack(error, key, text)
        if what is not None:
            return f'annotations {path} {what}.'
    return None


def _lack(error: Exception, key: str | None, text: str) -> str | None:
    """Describe what a COCO file lacks, or has in another form, that explains an error."""
    try:
        content = json.loads(text)
    except ValueError:  # of another format
        return None
    if not isinstance(content, Mapping):
        return None if key else f'cannot be used: {explain(error)}'
    for plural, (kind, keys) in LISTS.items():
        if kind == 'annotation' and key == EVALUATED:
            keys = (*keys, EVALUATED)
        if key == plural and key not in content:
            return f"lack '{key}'"
        for entry in content.get(plural, ()) if key in (None, *keys) else ():
            if not isinstance(entry, Mapping) or _unusable(entry, kind, key):
                what = f"lack '{key}' in" if key else f'cannot be used ({explain(error)}):'
                return f'{what} the {kind} {reprlib.repr(entry)}; each needs {listed_keys(keys)}'
    return None


def _unusable(entry: Mapping, kind: str, key: str | None) -> bool:
    if key is not None:
        return key not in entry
    if kind != 'annotation':
        return False
    box = entry.get('bbox')
    numbers = [entry.get(name, 0) for name in ('area', EVALUATED, 'id')]
    numbers += box if isinstance(box, list) else []
    usable = all(isinstance(number, (int, float)) for number in numbers)
    return not (usable and isinstance(box, list) and len(box) == 4)


def _of_text(error: Exception, key: str | None, path: str) -> str:
    """Describe an error in a text file of MMRotate's ``DOTADataset``."""
    if key is not None:
        return f"annotations {path} have a box of class '{key}', which metainfo.classes lacks."
    return (
        f'annotations {path} cannot be used ({explain(error)}); each line needs the 8 coordinates '
        f'of a box, the name of its class and its difficulty, 0 or 1.'
    )


def _nothing_left(dataset: BaseDataset) -> str:
    if dataset.test_mode:
        return f'annotations {dataset.ann_file} have no image.'
    least = (dataset.filter_cfg or {}).get('min_size', 0)
    size = f', and of {least} pixels or more (filter_cfg.min_size),' if least else ''
    classes = listed(dataset.metainfo.get('classes') or (), limit=10)
    return (
        f'the training set has no image with a box of your classes ({classes}){size} in '
        f'{dataset.ann_file}; compare metainfo.classes with its categories, and see whether it '
        f'has annotations.'
    )
