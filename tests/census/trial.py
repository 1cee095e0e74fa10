"""One detector in a process of its own: plain, as a student and as a teacher, a step each."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import detectors
import numpy as np
import torch
from choice import Form, forms
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from samples import batch_for, tiny_bert

from rdimkd_det import distill_config
from rdimkd_det.errors import ConfigError
from rdimkd_det.host.patches import patch_detectors

LIMIT_S = 900
MEMORY = 10 * 2**30  # addresses, not resident pages
WORKS, REFUSED, FAILS = 'works', 'refused', 'fails'


def run_trial(folder: str) -> dict:
    """Return what became of a folder's detector."""
    with tempfile.TemporaryDirectory() as work_dir:
        context = multiprocessing.get_context('fork')
        process = context.Process(target=_child, args=(folder, Path(work_dir)), daemon=True)
        process.start()
        process.join(timeout=LIMIT_S)
        process.kill()
        result = Path(work_dir, 'result.json')
        if not result.is_file():
            return {'plain': f'ended with status {process.exitcode} within {LIMIT_S} s'}
        return json.loads(result.read_text())


def _child(folder: str, work_dir: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    MMLogger.get_current_instance().setLevel('ERROR')
    patch_detectors()  # without it, torch 2.13 trains no DETR
    os.chdir(detectors.CONFIGS.parent)  # configs name others as 'configs/...'
    start = time.monotonic()
    found = _try_forms(folder, work_dir)
    found['seconds'] = round(time.monotonic() - start)
    (work_dir / 'result.json').write_text(json.dumps(found))


def _try_forms(folder: str, work_dir: Path) -> dict:
    first = None
    for form in forms(folder):
        found = {'config': form.name, 'channels': form.channels, 'side': form.side}
        try:
            plain = _Plain(_config(form, work_dir), form.side)
        except Exception as error:  # the census is of what can happen
            _show(form)
            if first is None or first['config'] == form.name:  # the line of it as it is
                first = {**found, 'plain': _line(error)}
            continue
        found.update(detector=plain.config.model.type, parameters=plain.parameters, plain='trains')
        found['student'] = _outcome(partial(_as_student, plain, work_dir))
        found['teacher'] = _outcome(partial(_as_teacher, plain, work_dir))
        return found
    return first or {'plain': 'no config of a model'}


def _config(form: Form, work_dir: Path) -> Config:
    config = form.config()
    for part in detectors.children(config.model):
        for key in ('name', 'lang_model_name'):
            if part.get(key) == 'bert-base-uncased':
                part[key] = tiny_bert(work_dir / 'bert')
    return config


class _Plain:
    """A detector that MMDetection trains: its weights before a step and after, and its losses."""

    def __init__(self, config: Config, side: int) -> None:
        self.config, self.side = config, side
        model = _build(config.model)
        model.init_weights()
        self.tap = 'neck' if getattr(model, 'with_neck', hasattr(model, 'neck')) else 'backbone'
        self.parameters = sum(p.numel() for p in model.parameters())
        self.trained = [name for name, p in model.named_parameters() if p.requires_grad]
        self.before = copy.deepcopy(model.state_dict())
        self.losses = train_step(model, self.batch())
        if not all(np.isfinite(value) for value in self.losses.values()):
            raise FloatingPointError(f'losses are not finite: {self.losses}')
        self.after = model.state_dict()

    def batch(self) -> dict:
        return batch_for(self.config, self.side)


def _build(config: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    # Copied, because detectors change theirs; without SyncBatchNorm, as the Runner has it on a CPU.
    return revert_sync_batchnorm(MODELS.build(copy.deepcopy(config)))


def train_step(model: torch.nn.Module, batch: dict) -> dict[str, float]:
    """Train one step, as a Runner does; return the losses."""
    for clock in ('iter', 'epoch'):  # some heads read them
        MessageHub.get_current_instance().update_info(clock, 0)
    MessageHub.get_current_instance().update_info('max_epochs', 12)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = OptimWrapper(torch.optim.SGD(trained, lr=0.01))
    model.train()  # MMDetection's own distillations return nothing here
    losses = model.train_step(batch, optimizer)
    return {name: float(torch.as_tensor(value).detach()) for name, value in losses.items()}


def fixed_detector() -> Config:
    """Return the other side of every pair: a small RetinaNet with strides from 4 to 128."""
    strides = [4, 8, 16, 32, 64, 128]
    return detectors.small_config(
        'retinanet/retinanet_r18_fpn_1x_coco.py',
        neck=dict(start_level=0, num_outs=len(strides)),
        bbox_head=dict(anchor_generator=dict(strides=strides)),
    )


def _as_student(plain: _Plain, folder: Path) -> dict:
    fixed = fixed_detector()
    weights = _saved(folder / 'fixed.pth', _build(fixed.model).state_dict())
    model, found = _distil(plain.config, fixed, weights, plain.tap, 'neck')
    model.load_state_dict(plain.before)
    losses = train_step(model, plain.batch())
    _check(losses)
    for name, value in plain.losses.items():
        if name != 'loss' and not np.isclose(losses.get(name, np.nan), value, rtol=1e-3):
            raise AssertionError(f'{name} is {value} without a teacher, {losses.get(name)} with')
    after = model.state_dict()
    if not any(
        'backbone.' in name and not torch.equal(after[name], plain.after[name])
        for name in plain.trained
    ):
        raise AssertionError('the backbone learns nothing of the teacher')
    return found


def _as_teacher(plain: _Plain, folder: Path) -> dict:
    weights = _saved(folder / 'teacher.pth', plain.before)
    model, found = _distil(fixed_detector(), plain.config, weights, 'neck', plain.tap)
    _check(train_step(model, batch_for(fixed_detector(), plain.side)))
    return found


def _saved(path: Path, weights: dict) -> str:
    torch.save({'state_dict': weights}, path)
    return str(path)


def _distil(student: Config, teacher: Config, weights: str, tap: str, teacher_tap: str) -> tuple:
    config = distill_config(
        student, teacher, weights, 'random', 16, tap, teacher_module=teacher_tap, loss_weight=1.0
    )
    model = _build(config.model)
    pairs = model.distill.level_pairs[tap]
    return model, {'tap': tap, 'strides': [level.stride for level, _ in pairs]}


def _check(losses: dict[str, float]) -> None:
    distilled = {name: value for name, value in losses.items() if 'rdimkd' in name}
    if not distilled or not all(np.isfinite(v) and v > 0 for v in distilled.values()):
        raise AssertionError(f'distillation losses: {distilled}')
    if not all(np.isfinite(value) for value in losses.values()):
        raise AssertionError(f'losses are not finite: {losses}')


def _outcome(trial: Callable[[], dict]) -> dict:
    try:
        return {'outcome': WORKS, **trial()}
    except ConfigError as error:
        return {'outcome': REFUSED, 'line': str(error)}
    except Exception as error:
        _show()
        return {'outcome': FAILS, 'line': _line(error)}


def _line(error: Exception) -> str:
    text = str(error).strip()
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = '/'.join(Path(last.filename).parts[-3:])
    return f'{type(error).__name__}: {text.splitlines()[0] if text else ""} ({place}:{last.lineno})'


def _show(*what: object) -> None:
    print(*what, traceback.format_exc(), file=sys.stderr, flush=True)
