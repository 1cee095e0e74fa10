"""README and docs stay correct: commands are run or parsed, configs loaded, links followed."""

import argparse
import ast
import json
import os
import re
import runpy
import shlex
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import torch
from command_lines import without_outer_make
from detectors import small_config
from documents import DOCUMENTS, anchor, blocks, commands, headings, links
from mmengine.config import Config
from runs import (
    CLASSES,
    REPOSITORY,
    call_module,
    call_tool,
    distilled,
    fcos,
    load,
    run_config,
    write_data,
    write_teacher,
)

import rdimkd_det
from experiments.digits.images import DigitsOptions
from experiments.digits.making import make_digits
from rdimkd_det.distiller.build_loss import check_losses

ALL_COMMANDS = [command for document in DOCUMENTS for command in commands(document)]
# What a command that we cannot run here needs, by its first words.
NOT_OURS = {
    'wget': 'the network',
    'unzip': 'COCO',
    'mkdir': 'nothing that could rot',
    'ln': 'COCO',
    'tensorboard': 'TensorBoard, and a browser',
    'pre-commit': 'the network',
}


# Every command


@pytest.fixture(scope='module')
def launched(tmp_path_factory):
    """Run a launcher script with a python3 and srun that print their arguments; return these."""
    folder = tmp_path_factory.mktemp('bin')
    for name in ('python3', 'srun'):
        (folder / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (folder / name).chmod(0o755)

    def launched(words):
        path = f'{folder}:{os.environ["PATH"]}'
        # PYTHON: the script would rather take the environment that `make setup` made.
        environment = {**os.environ, 'PATH': path, 'PYTHON': 'python3'}
        done = subprocess.run(
            ['bash', *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return launched


class ParsedError(BaseException):
    """Ends a tool after it has parsed its command line."""


def parse(tool: str, words: list[str], is_synopsis: bool) -> None:
    """Let a tool parse a command line and stop; of a synopsis, check only the option names."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser, *args):
        if is_synopsis:
            options = {word.strip('[]') for word in words if word.strip('[]').startswith('--')}
            assert options <= parser._option_string_actions.keys()
        else:
            parse_args(parser, *args)
        raise ParsedError

    with (
        mock.patch.object(argparse.ArgumentParser, 'parse_args', stop),
        pytest.raises(ParsedError),
    ):
        call = call_tool if tool.endswith('.py') else call_module
        call(tool, *words)


@pytest.mark.parametrize('command', ALL_COMMANDS, ids=str)
def test_command__is_understood(command, launched):
    program, *words = command.words
    if program == 'make':
        done = subprocess.run(
            ['make', '-n', *words],
            cwd=REPOSITORY,
            env=without_outer_make(os.environ),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        for tool, options in re.findall(r'bin/python tools/(\S+)(.*)', done.stdout):
            parse(tool, shlex.split(options), is_synopsis=False)
    elif program.endswith('.sh'):
        told = launched([program, *words])
        script = next(place for place, word in enumerate(told) if word.endswith('.py'))
        parse(Path(told[script]).name, told[script + 1 :], command.is_synopsis)
    elif program.startswith('python'):
        if words[0] == '-m':
            parse(words[1], words[2:], command.is_synopsis)
        else:
            parse(f'../{words[0]}', words[1:], command.is_synopsis)
    elif program in ('pip', 'mim'):
        text = (REPOSITORY / 'setup.py').read_text()
        for extra in re.findall(r'\[([\w-]+)\]', ' '.join(words)):
            assert f"'{extra}':" in text
    elif program == '.ci/run':
        assert os.access(REPOSITORY / program, os.X_OK)
    else:
        assert program in NOT_OURS, f'say in NOT_OURS why {program} is not run, or test it'


def test_commands__are_found():
    texts = [command.text for command in ALL_COMMANDS]
    assert len(texts) > 30
    assert 'make demo' in texts and 'make demo ARGS="--seeds 0 1 2"' in texts
    assert 'python tools/train.py my_distilled.py --auto-scale-lr' in texts
    assert any(text.startswith('tools/dist_train.sh') for text in texts)


# The two walks through a whole training, in small


def run_commands(document: str, replacements: dict[str, str]) -> None:
    """Run a document's tools, one after the other, in this process and the current directory."""
    for command in commands(REPOSITORY / 'docs' / document):
        program, *words = command.words
        if program == 'python' and not command.is_synopsis:
            for old, new in replacements.items():
                words = [word.replace(old, new) for word in words]
            tool, *arguments = words
            try:
                call_tool(f'../{tool}', *arguments)
            except SystemExit as end:
                # Preflight is right: a teacher of one epoch is none.
                assert end.code == 0 or (tool.endswith('preflight.py') and end.code == 1), words


def file_of(document: str, name: str, replacements: dict[str, str]) -> str:
    """Return the block of a document that begins with ``# name``, with replacements."""
    found = blocks(REPOSITORY / 'docs' / document)
    [text] = [block.text for block in found if block.text.startswith(f'# {name}\n')]
    for old, new in replacements.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.slow
def test_get_started__in_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write_data(tmp_path / 'data')
    teacher = write_teacher(tmp_path / 'teacher')
    cfg = run_config(data, None, distilled(fcos(), teacher), max_epochs=1)
    cfg.work_dir = None
    cfg.auto_scale_lr = dict(base_batch_size=4)
    cfg.dump(tmp_path / 'small.py')
    replacements = {
        'configs/rdimkd_fcos_r50_r18.py': 'small.py',
        'work_dirs/rdimkd_fcos_r50_r18/epoch_25.pth': 'work_dirs/small/epoch_1.pth',
    }
    run_commands('get_started.md', replacements)
    exported, student = next(tmp_path.glob('fcos_r18-*.pth')), Path('work_dirs/small/epoch_1.pth')
    for name, tensor in load(student)['state_dict'].items():
        assert torch.equal(load(exported)['state_dict'][name], tensor)
    assert Path('work_dirs/plain/epoch_1.pth').is_file()


@pytest.mark.slow
def test_custom_dataset__from_a_folder_to_detections(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = write_data(tmp_path / 'data/my_data')
    (data / 'annotations.json').rename(data / 'all.json')
    write_small_retinanet(tmp_path / 'small.py')
    base = {'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py': 'small.py'}
    narrow = {
        "depth=101, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101')": (
            'depth=50, init_cfg=None'
        ),
        '[256, 512, 1024, 2048]': '[32, 64, 128, 256]',
    }
    for name, replacements in (('my_student.py', base), ('my_teacher.py', narrow)):
        text = file_of('custom_dataset.md', name, replacements)
        Path(name).write_text(re.sub(r'load_from = \(.*?\)\n', '', text, flags=re.DOTALL))
    split, *_, use = [
        block.text
        for block in blocks(REPOSITORY / 'docs/custom_dataset.md')
        if block.language == 'python'
    ]

    exec(split, {})
    assert str(list(CLASSES)) in capsys.readouterr().out
    parts = [json.loads((data / f'{name}.json').read_text()) for name in ('train', 'val')]
    assert [len(part['images']) for part in parts] == [7, 1]
    assert sum(len(part['annotations']) for part in parts) == 16

    run_commands('custom_dataset.md', {'epoch_12': 'epoch_1'})
    assert 'Teacher AP' in capsys.readouterr().out
    assert Config.fromfile('my_distilled.py').model.student.bbox_head.num_classes == 3

    exported = next(tmp_path.glob('my_student-*.pth')).name
    exec(use.replace('my_student-1a2b3c4d.pth', exported), {})
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[0] in CLASSES for line in lines if line)


def write_small_retinanet(path: Path) -> None:
    """Write the base config of the custom data set's student: narrow, small images, one epoch."""
    cfg = small_config('retinanet/retinanet_r18_fpn_1x_coco.py', channels=16)
    cfg.train_cfg.max_epochs = 1
    cfg.model.test_cfg.score_thr = 0.0
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        for step in loader.dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (80, 64)
    cfg.dump(path)


@pytest.mark.slow
def test_example__in_python(tmp_path, capsys):
    make_digits(tmp_path / 'digits', DigitsOptions(num_train=32, num_val=1))
    out = tmp_path / 'out/student.pth'
    options = ['--data', tmp_path / 'digits', '--max-iters', '2', '--out', out]
    call_tool('../examples/distill_in_python.py', *options)
    told = capsys.readouterr().out
    assert 'teacher 2/2' in told and 'loss_rdimkd_neck_s8' in told
    plain = Config.fromfile(REPOSITORY / 'configs/digits/fcos_r18.py').model
    student = rdimkd_det.distiller.distiller.MODELS.build(plain)
    student.load_state_dict(load(out)['state_dict'], strict=True)


def test_example__mistakes_come_before_the_work(tmp_path, capsys):
    (tmp_path / 'mine').mkdir()
    for arguments, told in (
        (['--teacher', 'no.pth', '--data', tmp_path / 'new'], '--teacher no.pth not found.'),
        (['--data', tmp_path / 'mine'], f'--data {tmp_path}/mine has no annotations/train.json, '),
    ):
        with pytest.raises(SystemExit, match='2'):
            call_tool('../examples/distill_in_python.py', *arguments)
        error = capsys.readouterr().err
        assert error.startswith(f'distill_in_python.py: {told}') and error.count('\n') == 1
        assert [path.name for path in tmp_path.rglob('*')] == ['mine']


# Code blocks


PYTHON = [
    pytest.param(block, id=f'{block.document}: {block.text[:40]!r}')
    for document in DOCUMENTS
    for block in blocks(document)
    if block.language == 'python' and document.name != 'api.md'
]
STUDENT = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'


@pytest.mark.parametrize('block', PYTHON)
def test_python_block__compiles_or_loads(block, tmp_path):
    ast.parse(block.text)
    if '_base_ = [' in block.text:
        # As in the root of the repository, and as in configs/.
        (tmp_path / 'configs').symlink_to(REPOSITORY / 'configs')
        (tmp_path / '_base_').symlink_to(REPOSITORY / 'configs/_base_')
        (tmp_path / 'my_student.py').write_text(f'_base_ = [{STUDENT!r}]\n')
        text = block.text.replace('mmdet::<family>/<student>.py', STUDENT)
        (tmp_path / 'config.py').write_text(text)
        cfg = Config.fromfile(tmp_path / 'config.py')
        if cfg.model.type == 'RdimKDDistiller':
            check_losses(cfg.model.losses)
            assert cfg.model.student.type and cfg.model.teacher.config
            assert cfg.custom_hooks[-1].type == 'DistillHook'


# Pages


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_links__lead_somewhere(document):
    for link in links(document):
        path, _, place = link.partition('#')
        target = (document.parent / path) if path else document
        assert target.exists(), link
        if place and target.suffix == '.md':
            assert place in map(anchor, headings(target)), link


@pytest.mark.parametrize(
    'run, costs',
    [
        ('step_384x512', lambda report: report['steps']),
        *((f'losses_800x1344{d}', lambda report: report['losses']['contiguous'])
          for d in ('', '_d16', '_d64', '_d256')),
    ],
)  # fmt: skip
def test_performance__figures_are_those_of_the_run(run, costs):
    text = (REPOSITORY / 'docs/performance.md').read_text()
    report = json.loads((REPOSITORY / f'docs/results/performance/{run}.json').read_text())
    for name, cost in costs(report).items():
        if name != report.get('fastest_teacher'):  # it is the teacher as configured
            assert f' {cost["median"]:.1f} |' in text, name


GPU_STEPS = {
    'plain student step': 'student step',
    'distilled step': 'distilled step',
    'distilled step, monitored (one in 50)': 'distilled step, monitored',
    'teacher, as configured': 'teacher: as configured',
    'teacher, fp32, unfused': 'teacher: fp32, unfused',
    'distillation loss, forward and backward': 'distillation loss, and backward',
    'reading both maps once': 'read both maps',
}
GPU_LOSSES = {
    'L2': 'l2',
    'L2 with a 1x1 adapter': 'l2-adapter',
    'PKD': 'pkd',
    'RdimKD, `normalize=None`': 'plain',
    "RdimKD, `'standardize'`": 'standardize',
    'reading both maps': 'read both maps',
}


def gpu_report(name: str) -> dict:
    """Return a report of tools/check_gpu.py; {} while no GPU has made it."""
    path = REPOSITORY / f'docs/results/performance/gpu/{name}.json'
    return json.loads(path.read_text()) if path.is_file() else {}


def gpu_row(label: str, cost: dict | None, unit: dict | None) -> str:
    if cost is None:
        return f'| {label} | - | - | - |'
    of_unit, memory = cost['median'] / unit['median'], cost['memory'] / 2**20
    return f'| {label} | {cost["median"]:.2f} | {of_unit:.3f} | {memory:.0f} |'


@pytest.mark.parametrize(
    'name, rows, costs, unit',
    [
        ('step', GPU_STEPS, lambda it: it.get('steps', {}), 'student step'),
        ('losses', GPU_LOSSES, lambda it: it.get('losses', {}).get('contiguous', {}), 'pkd'),
    ],
)
def test_performance__figures_of_a_gpu_are_those_of_its_check(name, rows, costs, unit):
    text = (REPOSITORY / 'docs/performance.md').read_text()
    measured = costs(gpu_report(name))
    for label, key in rows.items():
        assert gpu_row(label, measured.get(key), measured.get(unit)) in text


def test_performance__floor_and_seconds_of_a_gpu_are_those_of_its_check():
    text, report = (REPOSITORY / 'docs/performance.md').read_text(), gpu_report('step')
    floor, ratio, seconds = '-', '-', '-'
    if report:
        floor, ratio = f'{report["floor"]:.2f}', f'{report["distilled_to_floor"]:.3f}'
        seconds = f'{report["steps"]["distilled step"]["median"] / 1000:.3f}'
    assert f'| floor; distilled step / floor | {floor} | {ratio} | |' in text
    assert f'| Distilled step, s | {seconds} | {seconds} | {seconds} |' in text


def test_compatibility__times_of_operators_are_those_of_the_runs():
    text = (REPOSITORY / 'docs/compatibility.md').read_text()
    runs = [
        json.loads((REPOSITORY / f'docs/results/performance/operators_{run}.json').read_text())
        for run in ('compiled', 'torchvision')
    ]
    for name in runs[0]['ms']:
        times = [f'{time:.0f}' for run in runs for time in run['ms'][name].values()]
        assert f'| {name} | {" | ".join(times)} |' in text


def test_recipes__costs_are_those_that_were_counted():
    text = (REPOSITORY / 'docs/recipes.md').read_text()
    told = re.findall(r'^\| \[(\w.+?)\]\(.+\| (\S+) \| (\S+) \|$', text, re.MULTILINE)
    configs = [path.stem for path in REPOSITORY.glob('configs/rdimkd_*.py')]
    assert sorted(name for name, *_ in told) == sorted(configs)
    for name, cost, size in told:
        report = json.loads((REPOSITORY / f'docs/results/costs/{name}.json').read_text())
        operations = report['operations']
        counted = operations['distilled_step'] / operations['student_step']
        assert (cost, size) == (f'{counted:.2f}', f'{report["weights"]["teacher"] / 1e6:.0f}')
        assert f'configs/{name}.py --only operations --shape 384 512' in report['command']


# Said by the host, in all its versions' words.
OF_THE_HOST = ('Expected to have finished', 'Weights only load failed', "No module named '")


def test_troubleshooting__messages_are_those_of_the_code():
    """Three consecutive words of each message in a heading must occur in a string of the code."""
    said = '\0'.join(
        node.value
        for folder in ('rdimkd_det', 'tools')
        for path in (REPOSITORY / folder).rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    quotes = [
        quote
        for heading in headings(REPOSITORY / 'docs/troubleshooting.md')
        for quote in re.findall(r'`([^`]+)`', heading)
        if not quote.startswith(OF_THE_HOST)
    ]
    assert len(quotes) > 15
    for quote in quotes:
        words = quote.split()
        runs = [' '.join(words[start : start + 3]) for start in range(max(1, len(words) - 2))]
        assert any(run in said for run in runs), quote


def test_api_docs__are_up_to_date():
    tool = runpy.run_path(str(REPOSITORY / 'tools/make_api_docs.py'), run_name='tool')
    for path, text in tool['pages'](REPOSITORY).items():
        assert path.read_text() == text, 'run: python tools/make_api_docs.py'


def test_api_docs__docstring_as_markdown():
    tool = runpy.run_path(str(REPOSITORY / 'tools/make_api_docs.py'), run_name='tool')
    docstring = (
        'Sum of :class:`Two`.\n\nArgs:\n    first (int): A number\n        of any size.\n'
        '    second: ``None`` too.\n\nReturns:\n    int: The\n    sum.'
    )
    assert tool['sections'](docstring) == (
        'Sum of `Two`.\n\nArgs:\n\n- `first` (int): A number of any size.\n'
        '- `second`: `None` too.\n\nReturns: int: The sum.'
    )


def test_api_docs__name_everything_public():
    page = (REPOSITORY / 'docs/api.md').read_text()
    for name in set(rdimkd_det.__all__) - {'__version__', 'functional'}:
        assert f'### `rdimkd_det.{name}`' in page
    for name in ('functional.rdimkd_loss', 'functional.standardized_loss', 'schedule.Schedule'):
        assert f'### `rdimkd_det.{name}`' in page
    assert 'resize: str | None = None' in page  # signatures, with their types and defaults


def test_map__has_every_module():
    page = (REPOSITORY / 'docs/contributing.md').read_text()
    on_map = set()
    for line in page.splitlines():
        if line.startswith(('**`rdimkd_det/', '**`experiments/')):
            folder = line.split('`')[1]
        elif line.startswith('| `'):
            on_map.add(f'{folder}{line.split("`")[1]}.py')
    packages = [REPOSITORY / 'rdimkd_det', REPOSITORY / 'experiments']
    modules = {str(p.relative_to(REPOSITORY)) for it in packages for p in it.rglob('*.py')}
    assert on_map == {name for name in modules if not name.endswith('__init__.py')}


def test_readme__is_short():
    assert len((REPOSITORY / 'README.md').read_text().splitlines()) < 200
