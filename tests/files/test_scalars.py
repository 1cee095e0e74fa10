"""The scalars of a training: merged over its parts, and its validations at their iterations."""

import pytest
from logs import train_line, val_line, write_part
from mmengine.config import Config

from rdimkd_det.files.scalars import due_validations, read_history


def test_read_history__resumed_part_replaces_what_came_after_its_checkpoint(tmp_path):
    first = [train_line(5), train_line(10), val_line(1, 0.2), train_line(15), train_line(20)]
    write_part(tmp_path, '20260101_000000', [*first, val_line(2, 0.9)], cut_off='{"loss": 1, "s')
    second = [train_line(15, loss=3.0), train_line(20, loss=4.0), val_line(2, 0.3)]
    write_part(tmp_path, '20260101_000500', second)
    history = read_history(tmp_path)
    assert history.series('loss') == ([5, 10, 15, 20], [1.0, 1.0, 3.0, 4.0])
    assert history.metrics(1)['ap'] == 0.2
    assert history.metrics() == {'ap': 0.3, 'ap50': 0.4, 'ap75': pytest.approx(0.35)}


def test_read_history__later_steps_of_an_abandoned_part_are_void(tmp_path):
    write_part(tmp_path, '20260101_000000', [train_line(10), train_line(20), val_line(2, 0.9)])
    write_part(tmp_path, '20260101_000500', [train_line(15)])
    history = read_history(tmp_path)
    assert sorted(history.train) == [10, 15]
    assert history.val == {}


@pytest.mark.parametrize('logged_step', [lambda iteration: iteration, lambda iteration: 0])
@pytest.mark.parametrize('by_epoch', [False, True])
def test_read_history__of_an_iteration_based_loop(tmp_path, logged_step, by_epoch):
    """Validations are logged with their iteration, or with epoch 0, LoggerHook's default."""

    def line(iteration):
        whole = train_line(iteration, epoch_length=1000)
        return whole if by_epoch else {k: v for k, v in whole.items() if k != 'epoch'}

    def val(iteration, ap):
        return val_line(logged_step(iteration), ap)

    first = [line(5), line(10), val(10, 0.2), line(15), line(20), val(20, 0.9), line(25)]
    write_part(tmp_path, '20260101_000000', first)
    assert read_history(tmp_path).ap_line == ([10, 20], [0.2, 0.9])
    # A validation at the checkpoint's own iteration came before what is trained anew.
    write_part(tmp_path, '20260101_000500', [val(10, 0.3), line(15)])
    assert read_history(tmp_path).ap_line[0] == [10]
    write_part(tmp_path, '20260101_001000', [line(15), line(20), val(20, 0.4)])
    history = read_history(tmp_path)
    assert history.ap_line == ([10, 20], [0.3, 0.4])
    assert sorted(history.train) == [5, 10, 15, 20]


def test_losses__finest_stride_first(tmp_path):
    write_part(tmp_path, '20260101_000000', [train_line(5)])
    names = ['loss_rdimkd_neck_s8', 'loss_rdimkd_neck_s16']
    assert read_history(tmp_path).losses() == names


def test_metrics__validation_without_detections_is_zero(tmp_path):
    write_part(tmp_path, '20260101_000000', [train_line(10), {'time': 1.0, 'step': 1}])
    assert read_history(tmp_path).metrics() == {'ap': 0.0, 'ap50': 0.0, 'ap75': 0.0}


def test_ap_line__where_there_are_objects(tmp_path):
    of_voc = {'pascal_voc/mAP': 0.5, 'step': 3}
    lines = [train_line(10), val_line(1, 0.2), val_line(2, -1.0), of_voc, val_line(4, 0.3)]
    write_part(tmp_path, '20260101_000000', lines)
    history = read_history(tmp_path)
    assert history.ap_line == ([1, 4], [0.2, 0.3])
    assert history.metrics(3) == {}


def test_read_history__nothing_there(tmp_path):
    history = read_history(tmp_path / 'none')
    assert (history.iterations, history.metrics()) == (0, None)


def test_read_history__validations_between_logged_iterations(tmp_path):
    loop = dict(type='IterBasedTrainLoop', max_iters=45, val_interval=15)
    due = due_validations(Config(dict(train_cfg=loop)))
    assert due == [15, 30, 45]
    lines = [val_line(0, 0.1), train_line(20), val_line(0, 0.2), train_line(40), val_line(0, 0.4)]
    write_part(tmp_path, '20260101_000000', lines)
    assert read_history(tmp_path, due=due).ap_line == ([15, 30, 45], [0.1, 0.2, 0.4])


@pytest.mark.parametrize(
    'loop, due',
    [
        (dict(type='EpochBasedTrainLoop', max_epochs=2), None),
        (dict(type='IterBasedTrainLoop', max_iters=2500), [1000, 2000, 2500]),
        (dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2, val_begin=3), [4]),
        (dict(by_epoch=False, max_iters=3, val_interval=2), [2, 3]),
        (dict(type='IterBasedTrainLoop', max_iters=9, dynamic_intervals=[(5, 1)]), None),
        (dict(type='IterBasedTrainLoop', max_iters='many'), None),
    ],
)
def test_due_validations__multiples_of_the_interval_and_the_end(loop, due):
    assert due_validations(Config(dict(train_cfg=loop))) == due
