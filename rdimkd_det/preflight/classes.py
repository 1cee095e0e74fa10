"""Class names of the data and of the teacher, and the mapping between their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.config import Config
from torch import nn

from ..data_check.classes import classes_of, names_in
from ..errors import ConfigError
from ..files.checkpoints import dataset_meta_of, read_checkpoint_safely
from ..files.configs import leaves_of, read_config
from ..options import listed
from ..teacher import Source


def data_classes(
    cfg: Config, splits: Sequence[str] = ('train',), things: bool = False
) -> tuple[str, ...] | None:
    """Return the class names of a config's dataset, without reading its annotations, or None.

    Of the splits, any of 'train', 'val' and 'test', the first with class names counts. With
    ``things``, only those with boxes, of a panoptic data set.
    """
    for split in splits:
        classes = classes_of(next(leaves_of(cfg, split), {}), split, things)
        if classes:
            return classes
    return None


def teacher_classes(source: Source) -> tuple[str, ...] | None:
    """Return the class names in a teacher's checkpoint, otherwise those of its config's dataset."""
    if source.model is None:
        return None
    content = read_checkpoint_safely(source.checkpoint, who='teacher')
    meta = content.get('meta') if isinstance(content, Mapping) else None
    if isinstance(meta, Mapping):
        classes = names_in(dataset_meta_of(meta)) or names_in(meta)
        if classes:
            return classes
    try:
        return data_classes(read_config(source.config, 'teacher'), ('train', 'val', 'test'))
    except ConfigError:  # the teacher's data need not be there
        return None


def label_map(teacher: Sequence[str], data: Sequence[str]) -> dict[int, int]:
    """Map the teacher's labels to the data's, for the classes that both have."""
    of_data = {name: label for label, name in enumerate(data)}
    return {label: of_data[name] for label, name in enumerate(teacher) if name in of_data}


def check_room_for_classes(cfg: Config, model: nn.Module) -> None:
    """Raise a ``ConfigError`` if the data set has more classes than a box head has outputs.

    A head takes the label after its last class for background, so that such a training ends well
    on a CPU with a detector that misses whole classes, and on a GPU in an assertion of CUDA.
    """
    distilled = hasattr(model, 'distill')
    classes = data_classes(cfg, things=True) or ()
    if distilled and not model.distill.labels:
        return
    for path, number in num_classes(model).items():
        if 'bbox_head' in path.split('.') and number < len(classes):
            raise ConfigError(
                f"{'the student' if distilled else 'the model'}'s {path} has "
                f'num_classes={number}, fewer than the {len(classes)} of the data set '
                f'({listed(classes)}); set model.{"student." * distilled}{path}.num_classes='
                f'{len(classes)}, or the metainfo of the data set.'
            )


def num_classes(model: nn.Module) -> dict[str, int]:
    """Return the number of classes of each head, by path, as ``NumClassCheckHook`` checks it."""
    return {
        name: module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        and 'head' in name
        and not name.startswith('distill.')
        and not name.endswith(('rpn_head', 'semantic_head'))
        and 'RPNHead' not in type(module).__name__  # of a detector of proposals alone
    }
