"""The demo: its rows, its report, and that it goes on after a kill."""

import json
import os
import subprocess
import sys
import time

import pytest
from runs import REPOSITORY, call_tool

from experiments import demo
from experiments.plan import full_config
from experiments.running.locks import lock_directory


def make_rows(plain=0.347, rdimkd=0.491, seeds=1):
    common = {'ap50': 0.8, 'ap75': 0.7, 'parameters': 1_780_000, 'seconds': 300.0, 'threads': 1}
    rows = [{'experiment': 'teacher', 'title': 'teacher', 'seed': 0, 'ap': 0.651, **common}]
    for seed in range(seeds):
        for name, ap in (('plain', plain), ('rdimkd', rdimkd)):
            title = f'{name} student'
            rows.append({'experiment': name, 'title': title, 'seed': seed, 'ap': ap, **common})
    return rows


def test_configs__students_differ_in_distillation_only():
    plain, rdimkd = full_config(demo.PLAIN), full_config(demo.RDIMKD)
    assert rdimkd.model.student == plain.model
    for key in ('train_cfg', 'param_scheduler', 'optim_wrapper', 'train_dataloader'):
        assert rdimkd[key] == plain[key]
    assert rdimkd.model.teacher.config == demo.TEACHER.base


def test_demo__second_one_in_the_same_directory(tmp_path, capsys):
    with lock_directory(tmp_path), pytest.raises(SystemExit, match='2'):
        call_tool('demo.py', '--work-dir', tmp_path)
    assert 'demo.py: other experiments are running in' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--seeds', '1', '1'], '--seeds must be different'),
        (['--jobs', '0'], '--jobs must be 1 or more'),
        (['--data', '/my data'], 'blanks, commas'),
    ],
)
def test_demo__mistakes(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match='2'):
        call_tool('demo.py', '--work-dir', tmp_path, *arguments)
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_verdict__for_each_outcome():
    student = 'The student that also learns from the teacher (RdimKD)'
    end = '; the two differ in the teacher only.'
    above, below = demo.verdict(make_rows(0.3, 0.4)), demo.verdict(make_rows(0.4, 0.3))
    assert above == f'{student} ends 0.100 AP above the plain student{end}'
    assert below == f'{student} ends 0.100 AP below the plain student{end}'
    equal = f'{student} and the plain student end with equal AP'
    assert demo.verdict(make_rows(0.0, 0.0)) == equal + end
    rows = make_rows(0.3, 0.2999, seeds=2)
    assert demo.verdict(rows) == f'{equal}, in the mean of 2 seeds{end}'


def test_count_parameters__leaves_the_config_as_it_is():
    count = demo.count_parameters(demo.RDIMKD)
    assert count == demo.count_parameters(demo.PLAIN) < demo.count_parameters(demo.TEACHER)
    assert full_config(demo.RDIMKD).model.student == full_config(demo.PLAIN).model
    assert 'train_cfg' not in full_config(demo.PLAIN).model.bbox_head


def test_gain__mean_over_seeds():
    rows = make_rows(seeds=2)
    rows[1]['ap'] += 0.01
    means = [demo.mean_row([row for row in rows if row['experiment'] == it]) for it in demo.KINDS]
    assert demo.gain([*rows, *means]) == pytest.approx(0.139)
    assert means[0]['ap'] == pytest.approx(0.352) and means[0]['seed'] is None


def test_cells__say_what_the_row_is():
    teacher, plain, _ = make_rows()
    numbers = ('0.800', '0.700', '1.78 M')
    assert demo.cells({**teacher, 'threads': 2}) == (
        'teacher', '0.651', *numbers, '5 min (2 cores)'
    )  # fmt: skip
    assert demo.cells(plain) == ('plain student, seed 0', '0.347', *numbers, '5 min (1 core)')
    assert demo.cells({**plain, 'seed': None})[0] == 'plain student, mean'


@pytest.mark.slow
def test_demo__smoke_is_killed_and_goes_on(tmp_path):
    folder = tmp_path / 'demo'
    command = [sys.executable, 'tools/demo.py', '--smoke', '--jobs', '1', '--work-dir', str(folder)]
    env = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS='1')
    options = dict(cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = subprocess.Popen(command, **options, text=True)
    deadline = time.monotonic() + 300
    while not (done := [*folder.glob('teacher/*/done.json')]) and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.kill()
    output = first.communicate()
    assert done, output
    checkpoint = done[0].with_name('epoch_1.pth')
    made = checkpoint.stat().st_mtime_ns

    second = subprocess.run(command, **options, text=True)
    assert second.returncode == 0, second.stderr
    assert 'RdimKD student' in second.stdout
    assert checkpoint.stat().st_mtime_ns == made
    results = json.loads((folder / 'results.json').read_text())
    assert [row['experiment'] for row in results['rows']] == ['teacher', 'plain', 'rdimkd']
    assert results['rows'][1]['parameters'] == results['rows'][2]['parameters'] > 5e5
    html = (folder / 'report.html').read_text()
    for text in ('RdimKD on handwritten digits', demo.verdict(results['rows']), 'over plain'):
        assert text in html
