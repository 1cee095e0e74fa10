"""The command line's mistakes."""

import io
import re

import pytest
import torch
from malicious import Payload
from rich.console import Console
from runs import call_tool, fcos, load, run_config

from rdimkd_det.preflight.report import Report, Table


@pytest.mark.smoke
@pytest.mark.parametrize(
    'args, expected',
    [
        (['--samples', '-1'], '--samples must be 0 or more, got -1.'),
        (
            ['--json', 'no/such/report.json'],
            '--json no/such/report.json cannot be written: No such file or directory; give a file '
            'in an existing directory that you may write to.',
        ),
    ],
)
def test_mistake__arguments(config, capsys, args, expected):
    with pytest.raises(SystemExit) as stopped:
        call_tool('preflight.py', config(), *args)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f'preflight.py: {expected}\n'


@pytest.mark.smoke
def test_mistake__malicious_checkpoint(preflight, trained, tmp_path):
    proof, path = tmp_path / 'payload_ran', tmp_path / 'malicious.pth'
    weights = load(trained.checkpoint)['state_dict']
    torch.save(dict(state_dict=weights, meta=dict(), payload=Payload(proof)), path)
    for args in ([], ['--eval-teacher'], ['--samples', 0]):
        done = preflight(*args, checkpoint=path)
        assert done.status == 2 and done.report is None
        assert len(done.err.splitlines()) == 1
        assert 'malicious.pth holds more than plain data' in done.err
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # it would have


IN_PIPELINE = 'train_dataloader.dataset.pipeline.1'


@pytest.mark.parametrize(
    'option, expected',
    [
        ('optim_wrapper.clip_gradd.max_norm=1', "unexpected keyword argument 'clip_gradd'"),
        ('optim_wrapper.optimizer.lrr=1', "unexpected keyword argument 'lrr'"),
        ('param_scheduler.type=LinearLr', "did you mean 'LinearLR'?"),
        ('train_dataloader.batch_sizes=1', "unexpected keyword argument 'batch_sizes'"),
        ('val_dataloader.batch_sizes=1', "did you mean 'batch_size'?"),
        ('train_dataloader.num_workers=-1', 'num_workers option should be non-negative'),
        (f'{IN_PIPELINE}.type=Resizee', "did you mean 'Resize'?"),
        (f'{IN_PIPELINE}.scale=abc', 'Scale must be a number or tuple of int'),
        ('train_dataloader.dataset.ann_file=broken.json', 'broken.json are cut off or damaged: '),
    ],
)
def test_mistake__one_line_as_of_training(preflight, trained, option, expected):
    (trained.data / 'broken.json').write_text('{"images": [')
    done = preflight('--cfg-options', option)
    assert done.status == 2 and done.report is None
    assert len(done.err.splitlines()) == 1 and expected in done.err


def test_mistake__broken_image(preflight, trained):
    """It stops preflight as it would stop a training; it is not reported as a config mistake."""
    image = trained.data / 'images/0.png'
    whole = image.read_bytes()
    image.write_bytes(b'no image')
    done = preflight('--samples', 24)
    image.write_bytes(whole)
    assert done.status == 1 and done.report is None
    assert str(image) in done.err and len(done.err.splitlines()) == 1


def test_mistake__plain_config(trained, tmp_path, capsys):
    run_config(trained.data, tmp_path, fcos()).dump(tmp_path / 'plain.py')
    with pytest.raises(SystemExit) as stopped:
        call_tool('preflight.py', tmp_path / 'plain.py')
    assert stopped.value.code == 2
    assert 'the model is a plain FCOS' in capsys.readouterr().err


def test_report__a_long_path_is_printed_whole():
    path = f'/data/{"x" * 80}/epoch_12.pth'
    report = Report('')
    report.error('Teacher weights', f'{path} looks untrained', 'give another')
    console = Console(file=io.StringIO(), width=80)
    report.print(console)
    assert path in re.sub(r'\s+', '', console.file.getvalue())


def test_report__names_are_no_markup():
    report = Report('preflight of [old]/config.py', data_tables=[Table('Objects', ('class',))])
    report.data_tables[0].rows += [('pen [blue]',), ('n/a [/]',)]
    console = Console(file=io.StringIO(), width=80)
    report.print(console)
    for name in ('[old]/config.py', 'pen [blue]', 'n/a [/]'):
        assert name in console.file.getvalue()
