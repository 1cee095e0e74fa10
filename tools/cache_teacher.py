"""Store the teacher's projected maps of all training images; train with teacher=dict(cache=DIR)."""

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.runner import Runner
from torch import nn

from rdimkd_det import ConfigError, DistillHook
from rdimkd_det.commands import cli, launch
from rdimkd_det.commands.cfg_options import OptionsAction
from rdimkd_det.commands.checks import check_data, check_model, check_work_dir
from rdimkd_det.commands.hook_options import distill_hooks
from rdimkd_det.commands.mistakes import errors_explained
from rdimkd_det.distiller import RdimKDDistiller, distilled_student
from rdimkd_det.distiller.distillation import Distillation
from rdimkd_det.files.atomic import remove_leftovers
from rdimkd_det.files.configs import teacher_entries, without_cache
from rdimkd_det.host.registry import enter_scope
from rdimkd_det.progress import counting_bar, with_progress
from rdimkd_det.teacher.cache.images import image_pipeline
from rdimkd_det.teacher.cache.origin import check_facts, projection_facts
from rdimkd_det.teacher.cache.store import TeacherCache
from rdimkd_det.training.cache_making import (
    cache_images,
    check_room,
    fill_cache,
    prepare_cache,
    use_bases,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a distilled config')
    parser.add_argument(
        '--out', metavar='DIR', help="the cache; by default the config's teacher.cache"
    )
    parser.add_argument('--verify', action='store_true', help='only read the cache and name damage')
    parser.add_argument('--batch-size', type=int, help="images at once; by default the training's")
    parser.add_argument('--workers', type=int, help="loader processes; by default the training's")
    parser.add_argument(
        '--shard-mb', type=float, default=128, help='size of a shard in MB. Defaults to 128'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, default={}, help='override settings'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.set_defaults(work_dir=None)
    args = parser.parse_args()
    if args.batch_size is not None and args.batch_size < 1:
        raise ConfigError(f'--batch-size must be 1 or more, got {args.batch_size}.')
    if args.workers is not None and args.workers < 0:
        raise ConfigError(f'--workers must be 0 or more, got {args.workers}.')
    if not 0 < args.shard_mb < math.inf:
        raise ConfigError(f'--shard-mb must be above 0, got {args.shard_mb}.')
    return args


def main() -> None:
    args = parse_args()
    cfg = cli.read_config_file(args.config)
    launch.apply_common_arguments(cfg, args)
    teachers = (cfg.get('model') or {}).get('teacher')
    if not teachers:
        raise ConfigError(f'config {args.config} has no model.teacher: its model is a plain one.')
    directories = cache_directories(teacher_entries(teachers), args.out)
    if args.verify:
        verify(directories)
        return
    for line in check_data(cfg, ['train']).lines():
        print(f'warning: {line}', file=sys.stderr)
    image_pipeline(cfg)
    live = without_cache(cfg)
    check_model(live, training=False)
    for directory in directories:
        check_work_dir(str(directory), 'teacher cache')
    start_processes(args)
    enter_scope(cfg)
    model = distilled_student(MODELS.build(live.model)).to(get_device()).eval()
    caches = [
        (part, directory)
        for part, directory in zip(model.distill.per_teacher, directories)
        if part.has_weight
    ]
    if not caches:
        raise ConfigError(f'config {args.config}: no loss has a weight, nothing is to be stored.')
    for part, _ in caches:
        projection_facts(part.loss_configs, part.teacher_taps)  # raises if nothing can be cached
        part.prepare(live)
    with errors_explained(cfg):
        if not all((directory / 'cache.json').is_file() for _, directory in caches):
            fit(cfg, model)
        for part, directory in caches:
            make(cfg, model.data_preprocessor, part, directory, args)


def cache_directories(teachers: list[tuple[str, Mapping]], out: str | None) -> list[Path]:
    """Return a directory per teacher; with several, --out has a folder named after each."""
    if out is None:
        found = [teacher.get('cache') for _, teacher in teachers]
        if None in found:
            raise ConfigError('--out DIR is missing, and the config has no teacher.cache.')
        return [Path(directory) for directory in found]
    if len(teachers) == 1:
        return [Path(out)]
    return [Path(out) / name for name, _ in teachers]


def start_processes(args: argparse.Namespace) -> None:
    """Start the process group under a launcher."""
    if args.launcher == 'none':
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    # gloo runs on every machine, and little is sent. The long timeout is for barriers: some
    # processes finish hours before others.
    launch.start_gloo(timeout=timedelta(days=30))


def fit(cfg: Config, model: RdimKDDistiller) -> None:
    """Fit the projections as ``DistillHook`` would."""
    hook = next(iter(distill_hooks(cfg)), DistillHook())
    hook.fit(model, Runner.build_dataloader(cfg.train_dataloader, seed=hook.seed))


def make(
    cfg: Config,
    preprocessor: nn.Module,
    part: Distillation,
    directory: Path,
    args: argparse.Namespace,
) -> None:
    """Make the cache of one teacher, or its missing shards."""
    facts = {
        **image_pipeline(cfg),
        **projection_facts(part.loss_configs, part.teacher_taps),
        **part.teacher.source.facts(),
    }
    if (directory / 'cache.json').is_file():
        cache = TeacherCache(directory)
        check_facts(cache, facts)
        facts = cache.about['facts']
    images, of_images = cache_images(cfg, facts['flip'])
    if 'images' in facts:  # a shard that is missing would hold other images than it should
        check_facts(cache, of_images)
    if is_main_process() and not (directory / 'cache.json').is_file():
        facts = {**facts, **of_images}
        prepare_cache(directory, part, facts, preprocessor, images, int(args.shard_mb * 1e6))
    barrier()
    cache = TeacherCache(directory)
    use_bases(part, cache)
    if is_main_process():
        remove_leftovers(directory)
        print(f'{directory}: {check_room(cache)}.')
    barrier()  # the free space is measured before any process writes a shard
    loading = {'batch_size': 1, 'num_workers': 0, **cfg.train_dataloader}  # PyTorch's defaults
    batch_size = args.batch_size or loading['batch_size']
    workers = loading['num_workers'] if args.workers is None else args.workers
    start = time.monotonic()
    total = len(cache.missing_shards()) * cache.about['shard_entries'] // get_world_size()
    with counting_bar('caching the teacher', total, shown=is_main_process()) as advance:
        fill_cache(cache, part, preprocessor, images, batch_size, workers, advance)
    barrier()
    cache.load_index()  # raises if a shard is missing
    if is_main_process():
        print(
            f'{directory} is complete, after {time.monotonic() - start:.0f} s. '
            f"Train with model.teacher.cache='{directory}'."
        )


def verify(directories: Sequence[Path]) -> None:
    """Read every entry; if any shard is damaged, print its name and exit with status 1."""
    damaged = []
    for directory in directories:
        if not (directory / 'cache.json').is_file():
            raise ConfigError(f'teacher cache {directory} is not there.')
        cache = TeacherCache(directory)
        numbers = with_progress(range(cache.num_shards), 'reading')
        damaged += [found for found in map(cache.damage, numbers) if found]
        print(f'{directory}: {cache.num_shards} shards read.')
    if damaged:
        cli.exit_with('\n'.join(damaged), status=1)


if __name__ == '__main__':
    cli.run(main)
