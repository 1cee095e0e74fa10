"""Looks at all data sets of a run, below all wrappers, and at its evaluators."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from mmdet.datasets import CocoDataset, XMLDataset
from mmengine.config import Config

from ..errors import ConfigError
from ..files.annotations import category_names
from ..files.configs import annotation_path, leaves_of, reads_local_files
from ..options import type_name
from .annotated_set import AnnotatedSet, Files
from .boxes import check_boxes
from .categories import Naming, check_names, check_orders
from .classes import classes_of, dataset_type
from .coco_file import CocoFile
from .coco_loading import load_coco
from .evaluators import check_ids, check_images, check_needs
from .findings import DataReport, Finding
from .images import check_files, check_overlap
from .images import check_names as check_file_names
from .pixels import check_headers
from .voc import load_voc

SPLITS = ('train', 'val', 'test')


def look_at(cfg: Config, splits: Sequence[str], thorough: bool = False) -> DataReport:
    """Look at the data of some of a run's splits, one pass over each annotation file.

    Args:
        cfg (Config): The config of the run.
        splits (Sequence[str]): Those that it reads, any of 'train', 'val' and 'test'. Of the others
            only the order of the categories is compared, without reading the annotations.
        thorough (bool): Read the headers of all images, not of a sample, and look for copies of
            the training's images. Defaults to False.

    Raises:
        ConfigError: An annotation file is damaged or lacks something that loading needs.
    """
    report = DataReport()
    namings = []
    train_files: dict[str, Files] = {}
    for split in SPLITS:
        if split in splits:
            look = _Look(cfg, split, thorough)
            report.findings += look.findings()
            report.sets += [data.summary() for data in look.sets]
            namings += look.namings
            for data in look.sets:
                if split == 'train':
                    train_files.setdefault(data.path, []).extend(data.files)
                else:
                    report.findings += check_overlap(train_files, data, thorough)
        else:
            namings += _unread_namings(cfg, split)
    trained = next((naming for naming in namings if naming.split == 'train'), None)
    # Of a detector that is asked for classes by name, labels have no meaning of their own.
    prompts = any(it.get('return_classes') for split in SPLITS for it in leaves_of(cfg, split))
    orders = [] if prompts else check_orders(namings, trained)
    for finding in dict.fromkeys(orders):
        if finding.split in splits:
            report.findings.append(finding)
        elif 'train' in splits:  # of the test data, which the training itself does not need
            report.findings.append(replace(finding, severity='warning'))
    return report


class _Look:
    """The look at one split; annotation files are read once, and forgotten with it."""

    def __init__(self, cfg: Config, split: str, thorough: bool) -> None:
        self.cfg, self.split, self.thorough = cfg, split, thorough
        self.read = cache(CocoFile)
        self.by_leaf: dict[str, AnnotatedSet] = {}
        self.namings: list[Naming] = []
        self.refused: set[str] = set()  # files whose names are an error

    def findings(self) -> list[Finding]:
        """Return what is to be told about the split."""
        of_sets, of_files = [], []
        for key, leaf in _data_sets(self.cfg, self.split).items():
            kind, path = _kind(leaf), annotation_path(leaf)
            classes = classes_of(leaf, self.split)
            if kind == 'coco' and not leaf.get('ann_file'):
                raise ConfigError(f'{self.split} data: the {type_name(leaf)} has no ann_file.')
            local = reads_local_files(leaf) and os.path.exists(path or '')
            if kind is None or not local or not classes:
                continue  # of a folder, reading says that it is one
            if kind == 'voc':
                data, found = load_voc(self.split, leaf, path, classes)
                of_sets += found
            else:
                file = self.read(path)
                self.namings.append(_naming(self.split, file, classes))
                of_files += check_ids(self.split, file, 'Boxes')
                data = load_coco(self.split, leaf, file, classes)
            data = data.of_indices(leaf.get('indices'))
            self.by_leaf[key] = data
            of_sets += self._of_images(data, leaf)
        if self.split == 'train' and (self.cfg.get('model') or {}).get('labels') is False:
            return of_sets  # nothing learns from the boxes
        names = list(check_names(self.namings))
        self.refused = {it.file for it in names if it.severity == 'error'}
        boxes = [] if _any_error(names) else list(check_boxes(self.sets))
        evaluator = list(self._of_evaluators()) if self.split != 'train' else []
        # The cause before its consequences, since a start reports the first error.
        return [*names, *of_files, *boxes, *of_sets, *evaluator]

    @property
    def sets(self) -> list[AnnotatedSet]:
        return list(self.by_leaf.values())

    def _of_images(self, data: AnnotatedSet, leaf: Mapping) -> Iterator[Finding]:
        missing = list(check_files(data, leaf))
        yield from missing
        yield from check_file_names(data)
        if not any(finding.count == finding.total for finding in missing):
            yield from check_headers(data, leaf, network_channels(self.cfg), self.thorough)

    def _of_evaluators(self) -> Iterator[Finding]:
        evaluator = self.cfg.get(f'{self.split}_evaluator') or {}
        several = _is(evaluator, 'MultiDatasetsEvaluator')
        whole = isinstance(evaluator, Mapping) and 'metrics' in evaluator
        metrics = evaluator['metrics'] if whole else evaluator
        metrics = metrics if isinstance(metrics, (list, tuple)) else [metrics]
        # With several data sets each metric is of one; some may be of a kind that is not looked at.
        of_metrics = [self.by_leaf.get(_key(it)) for it in leaves_of(self.cfg, self.split)]
        first = next((naming.classes for naming in self.namings), None)
        for place, metric in enumerate(metrics):
            if not _is(metric, 'CocoMetric'):
                continue
            path = annotation_path({**metric, 'data_root': None})
            if not path:
                yield from self._without_file()
            sets = list(filter(None, of_metrics[place : place + 1])) if several else self.sets
            classes = sets[0].classes if several and sets else first
            if os.path.exists(path or '') and classes:
                yield from self._of_metric(metric, self.read(path), classes, sets)

    def _without_file(self) -> Iterator[Finding]:
        """Yield that a metric without a file needs the annotations in the samples."""
        dataset = repr(list(leaves_of(self.cfg, self.split)))
        if 'PackDetInputs' in dataset and "'instances'" not in dataset:
            yield Finding(
                'error', 'Evaluator', self.split, '', 'the CocoMetric has no ann_file',
                f'set {self.split}_evaluator.ann_file to the annotations of the data set',
            )  # fmt: skip

    def _of_metric(
        self, metric: Mapping, file: CocoFile, classes: tuple, sets: list[AnnotatedSet]
    ) -> Iterator[Finding]:
        naming = _naming(self.split, file, classes, 'evaluator')
        if not metric.get('sort_categories'):
            self.namings.append(naming)
        if file.path not in [data.path for data in sets]:
            yield from check_ids(self.split, file, 'Evaluator')
        names = [] if file.path in self.refused else list(check_names([naming]))
        yield from names
        format_only = bool(metric.get('format_only'))
        if not _any_error(names) and not format_only and file.path not in self.refused:
            yield from check_needs(self.split, file, classes)
        if sets:
            yield from check_images(self.split, sets, file, format_only)


def _data_sets(cfg: Config, split: str) -> dict[str, Mapping]:
    """Return each data set of a split once, whatever pipelines it has in a concatenation."""
    return {_key(leaf): leaf for leaf in leaves_of(cfg, split)}


def _key(leaf: Mapping) -> str:
    return repr({name: value for name, value in leaf.items() if name != 'pipeline'})


def _kind(leaf: Mapping) -> str | None:
    """Return 'coco' or 'voc' for data sets that load as MMDetection's own do; else None."""
    kind = dataset_type(leaf)
    for name, known in (('coco', CocoDataset), ('voc', XMLDataset)):
        methods = ('load_data_list', 'parse_data_info', 'filter_data')
        if all(getattr(kind, it, None) is getattr(known, it) for it in methods):
            return name
    return None


def _naming(split: str, file: CocoFile, classes: tuple, reader: str = 'data set') -> Naming:
    return Naming(split, file.path, tuple(classes), file.names, file.category_ids, reader)


def _unread_namings(cfg: Config, split: str) -> Iterator[Naming]:
    """Yield the namings of a split whose annotations are not read, where they are there."""
    for leaf in _data_sets(cfg, split).values():
        path = annotation_path(leaf)
        if _kind(leaf) == 'coco' and path and os.path.isfile(path):
            classes, names = classes_of(leaf, split), category_names(path)
            if classes and names:
                yield Naming(split, path, tuple(classes), names)


def _is(entry: object, name: str) -> bool:
    return isinstance(entry, Mapping) and 'type' in entry and type_name(entry) == name


def _any_error(findings: Sequence[Finding]) -> bool:
    return any(finding.severity == 'error' for finding in findings)


def network_channels(cfg: Config) -> int | None:
    """Return the channels that a model's config expects; None if it cannot be told."""
    model = cfg.get('model') or {}
    model = model.get('student') or model
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if not isinstance(preprocessor, Mapping) or not isinstance(model.get('backbone'), Mapping):
        return None
    mean = preprocessor.get('mean')
    if isinstance(mean, Sequence) and len(mean) == 3:
        return 3
    backbone = model['backbone']
    return backbone.get('in_channels', backbone.get('input_channels', 3))  # MMYOLO's name
