"""Images that cannot be read, and data loader workers that are killed."""

import multiprocessing
import os
import re
import shutil
import signal

import pytest
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from runs import call_tool


@HOOKS.register_module()
class KillWorker(Hook):
    """Kills a worker of the data loader at the second iteration."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 1:
            worker = multiprocessing.active_children()[0]
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('damage', ['missing', 'empty', 'corrupt'])
def test_image__is_named(config, files, tmp_path, capsys, damage, num_workers):
    data = tmp_path / 'data'
    shutil.copytree(files / 'data', data)
    image = data / 'images' / '3.png'
    if damage == 'missing':
        image.unlink()
    else:
        image.write_bytes(b'' if damage == 'empty' else b'no image')
    run = config(num_workers=num_workers)
    run.train_dataloader.dataset.data_root = str(data)
    run.dump(tmp_path / 'config.py')
    with pytest.raises(SystemExit) as exit_info:
        call_tool('train.py', tmp_path / 'config.py')
    last = capsys.readouterr().err.strip().splitlines()[-1]
    if damage == 'corrupt':
        assert exit_info.value.code == 1
        assert last.startswith(f'train.py: image {image} cannot be read (')
    else:  # the look at the data finds it before the training
        assert exit_info.value.code == 2
        assert last.startswith('train.py: train data: ') and str(image) in last


def test_worker__killed(config, tmp_path, capsys):
    run = config(num_workers=2)
    run.custom_hooks.append(dict(type='KillWorker'))
    run.train_dataloader.batch_size = 1  # more batches than are loaded ahead
    run.dump(tmp_path / 'config.py')
    with pytest.raises(SystemExit) as exit_info:
        call_tool('train.py', tmp_path / 'config.py')
    assert exit_info.value.code == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'DataLoader worker' in last and 'lower train_dataloader.num_workers' in last
    assert re.search(r'The last good checkpoint is .*/iter_\d+\.pth', last)
