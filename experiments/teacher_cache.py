"""Compare step times with a cached and a live teacher, and measure how fast the cache is read.

CONFIG is a distilled config whose model.teacher.cache exists. Plain, live and cached steps take
turns on the same batches, forward and backward, without the optimizer's step; medians are reported.
"""

import argparse
import copy
import os
import statistics
import time
from itertools import chain, islice, repeat

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from torch import nn

from rdimkd_det import ConfigError
from rdimkd_det.commands import cli
from rdimkd_det.commands.cfg_options import OptionsAction
from rdimkd_det.commands.checks import check_data, check_model
from rdimkd_det.distiller import distilled_student
from rdimkd_det.files.configs import without_cache
from rdimkd_det.teacher.cache.cached_teacher import CachedTeacher
from rdimkd_det.teacher.cache.store import TeacherCache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('--steps', type=int, default=15, help='of each kind. Defaults to 15')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, default={})
    args = parser.parse_args()
    if args.steps < 1:
        raise ConfigError('--steps must be 1 or more.')
    cfg = cli.read_config_file(args.config)
    cli.apply_options(cfg, args.cfg_options)
    cached = cached_student(cfg)
    read_speed(cached.distill.per_teacher[0].teacher.cache)
    live = MODELS.build(without_cache(cfg).model).to(get_device()).train()
    live.distill.load_state_dict(cached.distill.state_dict())  # the same bases
    compare_steps(cfg, cached, live, args.steps)


def cached_student(cfg: Config) -> nn.Module:
    """Build the distilled student of a config whose only teacher is read from a cache."""
    check_data(cfg, ['train'])
    model = distilled_student(check_model(cfg, training=False)).to(get_device()).train()
    teachers = [part.teacher for part in model.distill.per_teacher]
    if len(teachers) != 1 or not isinstance(teachers[0], CachedTeacher):
        raise ConfigError(
            f'{cfg.filename} has no teacher with a cache to compare with; make one with '
            f'tools/cache_teacher.py, and add --cfg-options model.teacher.cache=DIR.'
        )
    model.distill.per_teacher[0].prepare(cfg)
    return model


def compare_steps(cfg: Config, cached: nn.Module, live: nn.Module, steps: int) -> None:
    """Time the three kinds of step in turn, and print their medians."""
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    kinds = {'plain': (cached, 0.0), 'live': (live, 1.0), 'cached': (cached, 1.0)}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    batches = chain.from_iterable(repeat(loader))
    for batch in islice(batches, steps + 1):  # the first step is a warm-up
        for kind, (model, factor) in kinds.items():
            model.distill.per_teacher[0].set_factor(factor)
            seconds[kind].append(step_time(model, copy.deepcopy(batch)))
    medians = {kind: statistics.median(times[1:]) for kind, times in seconds.items()}
    for kind, median in medians.items():
        print(f'{kind:7} {median:8.3f} s, {median / medians["plain"]:.3f} of plain')


def step_time(model: nn.Module, batch: dict) -> float:
    """Return the seconds of one step's forward and backward pass."""
    start = time.perf_counter()
    data = model.data_preprocessor(batch, True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    loss.item()  # waits for a GPU
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def read_speed(cache: TeacherCache) -> None:
    """Print the speed of a first read, from disk and with checksums, and of a second read."""
    for path in cache.directory.glob('0*.safetensors'):
        with path.open('rb') as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    cache.load_index()
    print(f'index of {len(cache.entries)} entries: {time.perf_counter() - start:.3f} s')
    for what in ('first read, with checksums', 'second read'):
        start, size = time.perf_counter(), 0
        for key, entry in cache.entries.items():
            size += sum(maps.nbytes for maps in cache.read(key, entry.image_shape))
        elapsed = time.perf_counter() - start
        each = 1000 * elapsed / len(cache.entries)
        print(f'{what}: {size / 1e6 / elapsed:.0f} MB/s, {each:.2f} ms an image')


if __name__ == '__main__':
    cli.run(main)
