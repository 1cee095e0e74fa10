"""Where output goes, and files and directories that cannot be written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import one_line
from runs import REPOSITORY, call_tool, run_tool

from rdimkd_det.commands.cli import check_out_file


@pytest.mark.parametrize(
    'tool, option, path',
    [
        ('preflight.py', '--json', '/proc/none.json'),
        ('test.py', '--out', '/proc/none/x.pkl'),
        ('distill.py', '--save-config', '/proc/none/x.py'),
        ('analyze_projection.py', '--out', '/proc/none.png'),
        ('principal_angles.py', '--out', '/proc/none.png'),
        ('visualize.py', '--out', '/proc/none/x.png'),
        ('report.py', '--out', '/proc/none/x.html'),
    ],
)
@pytest.mark.skipif(not Path('/proc').is_dir(), reason='needs /proc, where nobody can write')
def test_file__that_cannot_be_written(files, capsys, tool, option, path):
    """The paths fail even for root; each tool reports this before it starts working."""
    teacher = files / 'teacher/teacher.py', files / 'teacher/teacher.pth'
    arguments = {
        'preflight.py': (files / 'distilled.py', '--samples', 0),
        'test.py': teacher,
        'distill.py': (files / 'plain.py', *teacher, '--dim', 8),
        'analyze_projection.py': (files / 'distilled.py',),
        'principal_angles.py': (files / 'distilled.py', teacher[1]),
        'visualize.py': (files / 'distilled.py', teacher[1], files / 'data/images/0.png'),
        'report.py': (files,),
    }
    with pytest.raises(SystemExit) as stopped:
        call_tool(tool, *arguments[tool], option, path)
    assert stopped.value.code == 2
    assert one_line(tool, capsys.readouterr().err) == (
        f'{tool}: {option} {path} cannot be written: No such file or directory; give a file in an '
        f'existing directory that you may write to.'
    )


def test_output__that_nobody_reads_any_more_ends_without_a_word(tmp_path):
    command = [sys.executable, REPOSITORY / 'tools/make_digits.py', '--out', tmp_path / 'digits']
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*command, '--num-train', '1', '--num-val', '1'], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b'')


def test_output__is_read_while_another_pipe_is_broken(tmp_path):
    """Such as the one to the process of a logging service: no reason to end without a word."""
    lines = 'from rdimkd_det.commands.cli import run\ndef fail(): raise BrokenPipeError\nrun(fail)'
    (tmp_path / 'fail.py').write_text(lines)
    done = run_tool(tmp_path / 'fail.py')
    assert done.returncode == 1 and done.stderr.endswith('BrokenPipeError\n')


def test_file__json_is_a_directory(refused, files, tmp_path):
    line = refused('preflight.py', files / 'distilled.py', '--json', tmp_path)
    assert line == f'preflight.py: --json {tmp_path} is a directory; give the name of a file.'


@pytest.mark.parametrize('path', ['/dev/stdout', 'pipe'])
def test_file__that_is_a_device_stays_one(refused, files, tmp_path, path):
    os.mkfifo(tmp_path / 'pipe')
    path = tmp_path / path  # '/dev/stdout' as it is
    line = refused('preflight.py', files / 'distilled.py', '--samples', 0, '--json', path)
    assert line.startswith(f'preflight.py: --json {path} is a device or pipe, ')
    assert (tmp_path / 'pipe').is_fifo()


@pytest.mark.skipif(not Path('/dev/shm').is_dir(), reason='needs /dev/shm')
def test_file__in_memory():
    check_out_file(Path('/dev/shm/rdimkd_none.html'), '--out')


def test_work_dir__that_cannot_be_made_is_named(files, tmp_path, capsys, monkeypatch):
    def full(path, *args, **kwargs):
        raise OSError(errno.EROFS, 'Read-only file system', path)

    monkeypatch.setattr('mmengine.runner.runner.mmengine.mkdir_or_exist', full)
    with pytest.raises(SystemExit) as stopped:
        call_tool('train.py', files / 'plain.py', '--work-dir', tmp_path / 'work')
    assert stopped.value.code == 2
    line = one_line('train.py', capsys.readouterr().err)
    assert line == f'train.py: {tmp_path}/work: Read-only file system.'
