"""Two processes on a CPU compute what one process computes."""

import pytest
import torch
import two_processes
from runs import (
    distilled,
    fcos,
    load,
    run_config,
    run_tool,
    trained_losses,
    write_teacher,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def of_two_processes(files):
    done = run_tool(two_processes.__file__, files, processes=2)
    assert done.returncode == 0, done.stderr
    return load(files / 'two_processes.pt')


@pytest.mark.parametrize('normalize', two_processes.NORMALIZE)
def test_first_step__equals_one_process_with_the_whole_batch(files, of_two_processes, normalize):
    """Compares gradients and PCA bases, with BatchNorm in eval and an adapter at each level."""
    found, expected = of_two_processes[normalize], two_processes.first_step(files, normalize)
    assert found.keys() == expected.keys()
    assert 'distill.losses.neck.adapters.2.weight' in found and 'backbone.conv1.weight' in found
    largest = max(value.nan_to_num().abs().max() for value in expected.values())
    for name, value in expected.items():
        scale = max(value.nan_to_num().abs().max(), 0.02 * largest)
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=1e-5 * float(scale), equal_nan=True, msg=name
        )
    for level in range(3):
        assert found[f'distill.losses.neck.projections.{level}.basis'].shape == (24, 8)


def test_train__two_processes_by_torchrun(files):
    """Adapters have parameters without a loss once the schedule has stopped."""
    work_dir = files / 'run'
    model = distilled(fcos(), write_teacher(files / 't'), loss_weight='auto')
    config = run_config(files / 'data', work_dir, model)
    config.train_dataloader.batch_size = 2
    config.train_cfg.max_epochs = 2
    config.train_cfg.val_interval = 2
    config.custom_hooks[0].schedule = 'fade'
    config.dump(files / 'config.py')
    done = run_tool('train.py', files / 'config.py', '--launcher', 'pytorch', processes=2)
    assert done.returncode == 0, done.stderr
    lines = trained_losses(work_dir)
    assert len(lines) == 4 and all(line['loss_rdimkd_neck_s8'] > 0 for line in lines[:3])
    checkpoint = load(work_dir / 'epoch_2.pth')
    history = checkpoint['message_hub']['log_scalars']['train/loss_rdimkd_neck_s8']
    assert list(history.data[0][3:]) == [0]
    assert checkpoint['meta']['iter'] == 4
    assert not any('distill' in key or key.startswith('module') for key in checkpoint['state_dict'])
    assert checkpoint['distill']['losses.neck.projections.0.basis'].shape == (24, 8)
