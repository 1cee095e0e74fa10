"""Directories and data of the experiments, and the training of each experiment."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from mmengine.config import Config, ConfigDict

from rdimkd_det.files.atomic import read_json, write_text
from rdimkd_det.files.configs import teacher_entries

from .running import ROOT, Run, path_option
from .study import Experiment, Study

# The sections of a config that decide the result; the others are paths and logging.
DECISIVE = (
    'model',
    'train_dataloader',
    'val_dataloader',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'custom_hooks',
)
SPLITS = ('train', 'val', 'test')


@dataclass(frozen=True)
class Plan:
    """Directories and data of the experiments.

    Args:
        study (Study): The experiments and their data set.
        work_dir (Path): Directory of the trainings.
        data (Path): Directory of the data set.
        results (Path): Directory of the results.
        images (object): The data set, as in :class:`Study`.
        epochs (int, optional): Epochs of every training; None for those of the configs. Defaults
            to None.
        threads (int): CPU threads of a training. Defaults to 1, with which a seed gives the same
            numbers on all machines of a kind.
    """

    study: Study
    work_dir: Path
    data: Path
    results: Path
    images: object
    epochs: int | None = None
    threads: int = 1

    def run(self, experiment: Experiment, seed: int) -> Run:
        """Return the training of an experiment with a seed, or with its only seed if it has one.

        The name of the work directory ends in a part of the digest, so that other settings get
        another directory.
        """
        seed = seed if experiment.seed is None else experiment.seed
        cfg = full_config(experiment)
        taught_by = self.study.table.get(experiment.teacher)
        teacher = self.run(taught_by, seed) if taught_by else None
        epochs = self.epochs or cfg.train_cfg.max_epochs
        digest = self._digest(cfg, seed, epochs, teacher, experiment.weights)
        paths = self._data_paths(cfg)
        loader = cfg.train_dataloader
        labelled = loader.sampler.get('source_ratio', [loader.batch_size])[0]
        if experiment.weights:
            paths['load_from'] = path_option(self.data.parent / experiment.weights)
        if teacher is not None:
            several = isinstance(cfg.model.teacher, list)
            key = 'model.teacher.0.checkpoint' if several else 'model.teacher.checkpoint'
            paths[key] = path_option(teacher.checkpoint)
            for tap, loss in cfg.model.losses.items():
                if 'checkpoint' in loss.get('projection', ()):  # it reads the teacher's weights
                    paths[f'model.losses.{tap}.projection.checkpoint'] = paths[key]
        kind = 'teacher' if experiment in self.study.teachers else 'plain'
        kind = 'distilled' if 'teacher' in cfg.model else kind
        return Run(
            kind=experiment.name,
            seed=seed,
            work_dir=self.work_dir / experiment.name / f'seed{seed}_{digest[:8]}',
            epochs=epochs,
            epoch_length=math.ceil(self.images.num_train / labelled),
            threads=self.threads,
            settings={'randomness.seed': str(seed), 'train_cfg.max_epochs': str(epochs)},
            paths=paths,
            digest=digest,
            config=path_option(self.work_dir / 'configs' / f'{experiment.name}.py'),
            title=f'{experiment.name}, seed {seed}',
            # The speed-up by threads is less than linear.
            guessed_pace=self.study.paces[kind] / self.threads**0.7,
            needs=() if teacher is None else (teacher,),
        )

    def _digest(
        self, cfg: Config, seed: int, epochs: int, teacher: Run | None, weights: str | None
    ) -> str:
        model = dict(cfg.model)
        entries = [entry for _, entry in teacher_entries(model.pop('teacher', None))]
        trained = [] if teacher is None else [teacher.digest, entries.pop(0).config]
        if trained or entries:
            model['teacher'] = [*trained, *entries]
        decisive = {key: cfg.get(key) for key in DECISIVE}
        content = [{**decisive, 'model': model}, seed, epochs]
        content += [self.study.version, asdict(self.images), *([weights] if weights else [])]
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _data_paths(self, cfg: Config) -> dict[str, str]:
        """Return config overrides with the paths of the data set."""
        root = path_option(self.data)
        loaders = {
            f'{split}_dataloader.dataset.{part}data_root': root
            for split in SPLITS
            for part in _parts(cfg[f'{split}_dataloader'].dataset)
        }
        ann_file = f'{root}/annotations/val.json'
        return {**loaders, **{f'{split}_evaluator.ann_file': ann_file for split in SPLITS[1:]}}

    def result_file(self, run: Run) -> Path:
        """Return the path of a training's result."""
        return self.results / run.kind / f'seed{run.seed}.json'

    def result(self, run: Run) -> dict:
        """Read the result of a training; empty if there is none with these settings."""
        result = read_json(self.result_file(run))
        return result if result.get('digest') == run.digest else {}


def _parts(dataset: ConfigDict) -> list[str]:
    """Return the prefixes of the options of a data set, or of the data sets it concatenates."""
    return [f'datasets.{place}.' for place in range(len(dataset.get('datasets', ())))] or ['']


@cache
def full_config(experiment: Experiment) -> Config:
    """Return the config of an experiment with its changes applied.

    The config is cached: do not modify it.
    """
    cfg = _read_config(experiment.base).copy()
    cfg.merge_from_dict(experiment.changes)
    return cfg


@cache
def _read_config(base: str) -> Config:
    return Config.fromfile(ROOT / base)


def write_config(experiment: Experiment, run: Run) -> None:
    """Write the config file of an experiment: its base with its changes."""
    path = ROOT / run.config
    path.parent.mkdir(parents=True, exist_ok=True)
    base = f'{experiment.base} and what the table of experiments changes'
    write_text(path, f'# {experiment.title}: {base}\n{full_config(experiment).pretty_text}')
