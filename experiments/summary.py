"""Results of experiments as tables: mean and standard error over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from rdimkd_det.errors import ConfigError

from .plan import Plan
from .study import Experiment, Study

NOTHING = '-'
MARKERS = '<!-- results on {}: begin -->', '<!-- results on {}: end -->'


@dataclass(frozen=True)
class Outcome:
    """All results of one experiment.

    Args:
        experiment (Experiment): The experiment.
        results (Mapping[int, dict]): Seed to its result, for the seeds that have one.
    """

    experiment: Experiment
    results: Mapping[int, dict]

    def scores(self, key: str = 'ap') -> dict[int, float]:
        """Return AP by seed.

        Args:
            key (str): 'ap', 'ap50' or 'ap75'. Defaults to 'ap'.
        """
        return {seed: result[key] for seed, result in sorted(self.results.items())}


def collect(plan: Plan, seeds: Sequence[int]) -> dict[str, Outcome]:
    """Read the results of all experiments, except those of settings that have changed since.

    Args:
        plan (Plan): Where the results are.
        seeds (Sequence[int]): The seeds to look for.

    Returns:
        dict[str, Outcome]: Name of an experiment to its results.
    """
    outcomes = {}
    for experiment in plan.study.table.values():
        runs = {run.seed: run for run in (plan.run(experiment, seed) for seed in seeds)}
        found = {seed: plan.result(run) for seed, run in runs.items()}
        results = {seed: result for seed, result in found.items() if result}
        outcomes[experiment.name] = Outcome(experiment, results)
    return outcomes


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and its standard error.

    Args:
        values (Sequence[float]): One value per seed.

    Returns:
        tuple: The mean, None without values; the sample standard deviation (n - 1) over the root
        of n, None with fewer than two values.

    Example:
        >>> mean_and_error([1.0, 2.0, 6.0])
        (3.0, 1.5275252316519468)
    """
    if not values:
        return None, None
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return fmean(values), error


def difference(outcome: Outcome, baseline: Outcome) -> list[float]:
    """Return AP minus the baseline's AP, for each seed that both have."""
    own, other = outcome.scores(), baseline.scores()
    return [own[seed] - other[seed] for seed in own if seed in other]


def markdown_table(
    experiments: Sequence[Experiment], outcomes: Mapping[str, Outcome], seeds: Sequence[int]
) -> str:
    """Return a Markdown table of experiments, with a dash for each missing result.

    Args:
        experiments (Sequence[Experiment]): The rows.
        outcomes (Mapping[str, Outcome]): Result of :func:`collect`.
        seeds (Sequence[int]): The seeds to show.
    """
    scores = ['mean', 'AP50', 'AP75', 'over plain', 'over PKD']
    columns = [*(f'seed {seed}' for seed in seeds), *scores]
    rows = [['', *columns], ['---'] * (1 + len(columns))]
    for experiment in experiments:
        outcome = outcomes[experiment.name]
        ap = outcome.scores()
        rows.append(
            [
                f'{experiment.title} (`{experiment.name}`)',
                *(_number(ap.get(seed)) for seed in seeds),
                _with_error(list(ap.values())),
                _number(mean_and_error([*outcome.scores('ap50').values()])[0]),
                _number(mean_and_error([*outcome.scores('ap75').values()])[0]),
                _over(outcome, outcomes.get(experiment.plain)),
                _over(outcome, outcomes.get(experiment.rival)),
            ]
        )
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def markdown_report(study: Study, outcomes: Mapping[str, Outcome], seeds: Sequence[int]) -> str:
    """Return all tables in Markdown, how complete they are, and the provenance of the numbers."""
    begun, others = [], []
    for group in study.groups:
        own = (it for it in study.select([group]) if it.groups[0] == group)
        (begun if any(outcomes[it.name].results for it in own) else others).append(group)
    parts = [_section(study, group, outcomes, seeds) for group in begun]
    if others:
        listed = '; '.join(f'`{group}` ({study.groups[group]})' for group in others)
        parts.append(f'Not run yet: {listed}.')
    return '\n\n'.join([_provenance(study, outcomes), *parts])


def _section(
    study: Study, group: str, outcomes: Mapping[str, Outcome], seeds: Sequence[int]
) -> str:
    experiments = study.select([group])
    known = [it for it in experiments if outcomes[it.name].results]
    unknown = [f'`{it.name}`' for it in experiments if not outcomes[it.name].results]
    done = sum(len(outcomes[it.name].results) for it in known)
    state = f'{done} of {len(experiments) * len(seeds)} runs done.'
    if unknown:
        state += f' Not run: {", ".join(unknown)}.'
    command = f'tools/run_experiments.py {group} --data-set {study.name}'
    parts = [f'### {study.groups[group]}', f'`{command}`: {state}']
    # Experiments shared with other groups, such as the plain student, make no table alone.
    if any(it.groups[0] == group for it in known):
        parts.append(markdown_table(known, outcomes, seeds))
    return '\n\n'.join(parts)


def insert_report(document: str, report: str, name: str) -> str:
    """Put a report between the markers of a document that name it.

    Raises:
        ConfigError: A marker is missing.
    """
    begin, end = (marker.format(name) for marker in MARKERS)
    if not 0 <= document.find(begin) < document.find(end):
        raise ConfigError(f'the document needs the lines {begin} and {end}.')
    before, rest = document.split(begin, 1)
    return f'{before}{begin}\n\n{report}\n\n{end}{rest.split(end, 1)[1]}'


def _over(outcome: Outcome, other: Outcome | None) -> str:
    return NOTHING if other in (None, outcome) else _with_error(difference(outcome, other))


def _provenance(study: Study, outcomes: Mapping[str, Outcome]) -> str:
    results = [it for outcome in outcomes.values() for it in outcome.results.values()]
    if not results:
        return 'Nothing has been run yet.'
    dates = sorted(result['date'][:10] for result in results)
    period = dates[0] if dates[0] == dates[-1] else f'{dates[0]} to {dates[-1]}'
    machines = '; '.join(sorted({_machine(result['machine']) for result in results}))
    return (
        f'Runs: {len(results)}, {period}, {machines}. AP is COCO AP on the val images after the '
        f'last epoch; mean ± standard error over the seeds. "Over plain" and "over PKD" are '
        f'differences to those students of the same seeds. A dash: not run. '
        f'{_teachers(study, outcomes, results)}'
    )


def _teachers(study: Study, outcomes: Mapping[str, Outcome], results: Sequence[Mapping]) -> str:
    """Return the teachers' AP, and a warning where students had different trainings of one."""
    trained = [it for teacher in study.teachers for it in outcomes[teacher.name].results.values()]
    listed = [f'{it["title"]}: AP {it["ap"]:.3f}' for it in trained]
    taught = [it['teacher'] for it in results if it['teacher']]
    names = [name for name, _ in {(it['experiment'], it['sha256']) for it in taught}]
    warnings = [
        f'The students of {name} had {names.count(name)} different trainings of it as teachers.'
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    return ' '.join([f'Teachers: {"; ".join(listed) or NOTHING}.', *warnings])


def _machine(machine: Mapping) -> str:
    return (
        f'{machine["processor"]}, {machine["cores"]} cores, torch {machine["torch"]}, '
        f'mmdet {machine["mmdet"]}'
    )


def _number(value: float | None) -> str:
    return NOTHING if value is None else f'{value:.3f}'


def _with_error(values: Sequence[float]) -> str:
    mean, error = mean_and_error(values)
    return _number(mean) + ('' if error is None else f' ± {error:.3f}')
