"""Running the experiments that have no result yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console

from rdimkd_det.commands.checks import check_work_dir
from rdimkd_det.errors import ConfigError
from rdimkd_det.progress import format_time

from .plan import Plan, write_config
from .results import keep_finished, keep_result
from .running import Run, is_done, seconds_left, stop_on_signals, train_all
from .running.locks import lock_directory
from .study import Experiment


def run_experiments(
    plan: Plan,
    experiments: Sequence[Experiment],
    seeds: Sequence[int],
    num_jobs: int,
    console: Console,
) -> None:
    """Train the experiments that have no result yet, writing each result as soon as it is known.

    Args:
        plan (Plan): Directories and data.
        experiments (Sequence[Experiment]): The experiments; their teachers are trained as well.
        seeds (Sequence[int]): Each experiment is run once per seed.
        num_jobs (int): Trainings at once, one thread each.
        console (Console): Where to show the progress.

    Raises:
        ConfigError: The work directory cannot be used, or other experiments are running in it.
        TrainingFailedError: A training failed; raised after all others have ended.
        TrainingInterruptedError: A signal or Ctrl-C ended the experiments.
    """
    check_work_dir(str(plan.work_dir))
    lock = lock_directory(plan.work_dir)
    if lock is None:
        raise ConfigError(f'other experiments are running in {plan.work_dir}.')
    with lock, stop_on_signals():
        keep_finished(plan, open_runs(plan, experiments, seeds))
        runs = [run for run in open_runs(plan, experiments, seeds) if not is_done(run)]
        if not runs:
            return
        count = '1 training' if len(runs) == 1 else f'{len(runs)} trainings'
        console.print(
            f'{count} to do, {min(num_jobs, len(runs))} at once, '
            f'about {format_time(seconds_left(runs, num_jobs))}; results in {plan.results}',
            highlight=False,
            soft_wrap=True,
        )
        plan.study.prepare(plan.data, plan.images, console)
        for run in runs:
            write_config(plan.study.table[run.kind], run)
        train_all(runs, num_jobs, console, lambda run: keep_result(plan, run), keep_going=True)


def open_runs(plan: Plan, experiments: Iterable[Experiment], seeds: Iterable[int]) -> list[Run]:
    """Return the trainings without a result, by seed, each after the teacher that it needs."""
    experiments = list(experiments)
    runs = {}
    for seed in seeds:
        for experiment in experiments:
            run = plan.run(experiment, seed)
            if not plan.result(run):
                for it in (*run.needs, run):
                    runs[it.digest] = it
    return list(runs.values())
