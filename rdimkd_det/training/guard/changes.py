"""What a resumed training keeps of its checkpoint although the config has another value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmengine.runner import Runner

# Entries of a scheduler's state that move with the training, or change no value.
OF_PLATEAU = {'best', 'num_bad_epochs', 'cooldown_counter'}  # ReduceOnPlateauLR
MOVING = {'last_step', '_global_step', '_last_value', 'verbose', *OF_PLATEAU}
# Differences that a message lists.
LISTED = 4
# Difference of the distillation's factor that is no rounding.
JUMP = 0.01


def warn_of_changes(runner: Runner, checkpoint: Mapping) -> None:
    """Warn, in one line, if schedules or optimizer options differ from the checkpoint's.

    mmengine's Runner (0.10.7, OneDL 0.10.12) restores all of them from the checkpoint, without a
    word. A schedule of the distillation follows the config; its factor before and after is named.
    """
    changes = [*_of_schedulers(runner, checkpoint), *_of_optimizer(runner, checkpoint)]
    named = changes[:LISTED] + ['...'] * (len(changes) > LISTED)
    lines = [f'the checkpoint goes on with {"; ".join(named)}'] if changes else []
    before, after = _factors(runner, checkpoint)
    if abs(after - before) > JUMP:
        lines.append(f"the distillation's factor was {before:.3g} and continues at {after:.3g}")
    if not lines:
        return
    lengths = _lengths(runner, checkpoint)
    remedy = (
        f'; for the schedule of this config start from the weights, with --cfg-options '
        f'load_from={runner._load_from} and without --resume'
        if changes
        else ''
    )
    runner.logger.warning('RdimKD: %s%s%s', ', and '.join(lines), lengths, remedy)


def _of_schedulers(runner: Runner, checkpoint: Mapping) -> Iterable[str]:
    kept, own = checkpoint.get('param_schedulers'), runner.param_schedulers
    if not isinstance(kept, list) or not isinstance(own, list):  # one per optimizer, or none
        return
    for state, scheduler in zip(kept, own):
        name, of_config = type(scheduler).__name__, scheduler.state_dict()
        for key in sorted(state.keys() & of_config.keys() - MOVING):
            if _plain(state[key]) != _plain(of_config[key]):
                yield _difference(f'{name}.{key.strip("_")}', state[key], of_config[key])
    if len(kept) != len(own):
        yield f'{len(kept)} schedulers (this config has {len(own)})'


def _of_optimizer(runner: Runner, checkpoint: Mapping) -> Iterable[str]:
    kept = checkpoint.get('optimizer') or {}
    own = getattr(runner.optim_wrapper, 'param_groups', None)
    if not isinstance(own, list) or 'param_groups' not in kept:
        return
    named = {'params'}
    for state, group in zip(kept['param_groups'], own):
        for key in sorted(state.keys() & group.keys() - named):
            # What is scheduled, by mmengine or by a hook of MMYOLO's, moves from where it began.
            before, now = (it.get(f'initial_{key}', it[key]) for it in (state, group))
            if not key.startswith('initial_') and _plain(before) != _plain(now):
                named.add(key)
                yield _difference(f'optimizer.{key}', before, now)


def _difference(name: str, kept: object, own: object) -> str:
    return f'{name} {_plain(kept)} (this config has {_plain(own)})'


def _plain(value: object) -> object:
    if isinstance(value, Mapping):  # milestones, counted
        return sorted(value)
    if isinstance(value, (list, tuple)):
        several = [_plain(each) for each in value]
        return several[0] if len(set(map(str, several))) == 1 else several
    return f'{value:.6g}' if isinstance(value, float) else value


def _factors(runner: Runner, checkpoint: Mapping) -> tuple[float, float]:
    """Return the distillation's factor as the checkpoint has it, and as this run continues."""
    meta = checkpoint.get('meta') or {}
    hooks = (hook for hook in runner.hooks if hasattr(hook, 'factor_at'))
    hook, before = next(hooks, None), meta.get('distillation_factor')
    if hook is None or before is None:
        return 0.0, 0.0
    return before, hook.factor_at(runner, meta['iter'])


def _lengths(runner: Runner, checkpoint: Mapping) -> str:
    """Return the lengths of both trainings as the end of a sentence; '' if they are equal."""
    info = (checkpoint.get('message_hub') or {}).get('runtime_info') or {}
    lengths = {
        name: (info.get(name), getattr(runner, name)) for name in ('max_epochs', 'max_iters')
    }
    differing = [f'{name} was {a}, is {b}' for name, (a, b) in lengths.items() if a and a != b]
    return f' ({", ".join(differing)})' if differing else ''
