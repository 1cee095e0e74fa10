"""Trainings with images without labels, by the tools: mixed in, alone, resumed, from a cache."""

import signal
from pathlib import Path

import pytest
from command_lines import one_line
from interruptions import BATCHES, EPOCHS, Kill, final, in_child, start
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from runs import assert_equal, call_tool, fcos, load, run_config, run_tool, trained_losses
from unlabelled import mixed_config, teacher_of, write_images

from rdimkd_det import ConfigError
from rdimkd_det.datasets.mixing import check_mixing

LEVELS = {f'loss_rdimkd_neck_s{stride}' for stride in (8, 16, 32)}
OWN = {'loss_cls', 'loss_bbox', 'loss_centerness'}


@pytest.fixture
def distil(files, tmp_path):
    """Run tools/distill.py on a plain config of 8 images, of which a batch has 4."""
    config = tmp_path / 'student.py'
    run_config(files / 'data', tmp_path / 'run', fcos(), max_epochs=1).dump(config)

    def distil(*options, tool=call_tool) -> object:
        return tool('distill.py', config, *teacher_of(files).values(), '--dim', 4, *options)

    return distil


def test_distill__mixes_them_in(files, distil, tmp_path, capsys):
    folder = write_images(tmp_path / 'images')
    distil('--unlabelled', folder, '--per-batch', 3, '--loss-weight', 1)
    assert f'4 images with labels and 3 without, from {folder}; an' in capsys.readouterr().out
    steps = trained_losses(tmp_path / 'run')
    assert len(steps) == 2  # as many as without them
    assert all(set(step) >= OWN | LEVELS for step in steps)
    checkpoint = load(tmp_path / 'run/epoch_1.pth')
    assert checkpoint['meta']['dataset_meta']['classes'] == ('red', 'green', 'blue')


def test_recipe__first_without_labels_then_with(files, distil, tmp_path, capsys):
    """The two commands of docs/unlabelled.md."""
    folder, first = write_images(tmp_path / 'images', num=8), tmp_path / 'first'
    student = Config.fromfile(tmp_path / 'student.py')
    options = [f'{split}_dataloader.dataset.ann_file' for split in ('train', 'val')]
    for annotations, run in (
        ('none.json', ('--labels', 'none', '--work-dir', first)),
        ('annotations.json', ('--cfg-options', f'load_from={first / "epoch_1.pth"}')),
    ):
        student.merge_from_dict(dict.fromkeys(options, annotations))
        student.dump(tmp_path / 'student.py')
        distil('--unlabelled', folder, *run)
    assert f'only images without labels, from {folder}' in capsys.readouterr().out
    steps = trained_losses(first)
    assert len(steps) == 2
    assert all({name for name in step if name.startswith('loss_')} == LEVELS for step in steps)
    checkpoint = load(first / 'epoch_1.pth')
    MODELS.build(fcos()).load_state_dict(checkpoint['state_dict'], strict=True)
    initial = load_initial(first)
    changed = {
        name.split('.')[0]
        for name, value in checkpoint['state_dict'].items()
        if not value.equal(initial[name])
    }
    assert changed == {'backbone', 'neck'}
    assert all(set(step) >= OWN | LEVELS for step in trained_losses(tmp_path / 'run'))


def load_initial(work_dir: Path) -> dict:
    """Build the student of a run as its Runner did."""
    cfg = Config.fromfile(Path(work_dir) / 'student.py')
    cfg.work_dir, cfg.model = f'{work_dir}_initial', cfg.model.student
    cfg.custom_hooks = []
    runner = Runner.from_cfg(cfg)
    runner._init_model_weights()
    return runner.model.state_dict()


def test_save_config__gives_the_same_training(files, distil, tmp_path):
    folder, path = write_images(tmp_path / 'images'), tmp_path / 'mine.py'
    distil('--unlabelled', folder, '--save-config', path)
    loader = Config.fromfile(path).train_dataloader
    assert loader.sampler.source_ratio == [4, 4] and loader.batch_size == 8
    assert loader.dataset.datasets[1].data_root == str(folder)
    assert loader.dataset.datasets[0].ann_file == 'annotations.json'
    distil('--unlabelled', folder, '--labels', 'none', '--save-config', path, '--force')
    cfg = Config.fromfile(path)
    assert cfg.model.labels is False and cfg.val_dataloader is None
    assert cfg.train_dataloader.dataset.type == 'UnlabelledImages'
    assert cfg.model.student == fcos()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--labels', 'none'], '--labels none needs --unlabelled DIR, a folder of images.'),
        (['--per-batch', 2], '--per-batch needs --unlabelled DIR'),
        (['--unlabelled', '{}', '--per-batch', 0], '--per-batch must be 1 or more, got 0.'),
        (['--unlabelled', '{}', '--labels', 'none', '--per-batch', 1], '--per-batch: with --lab'),
        (['--unlabelled', '{}', '--labels', 'none', '--fade'], '--fade: with --labels none'),
        (['--unlabelled', '{}/none'], '--unlabelled {}/none is no folder; give a folder of'),
        (['--unlabelled', '{}'], 'UnlabelledImages: {} has no image, also not in the folders in'),
        (['--unlabelled', '{}/bad'], 'UnlabelledImages: 1 of 7 files in {}/bad cannot be read'),
    ],
)
def test_mistakes__one_line_and_nothing_written(distil, tmp_path, capsys, options, message):
    folder = tmp_path / 'empty'
    folder.mkdir()
    if '{}/bad' in options:
        (write_images(folder / 'bad') / 'x.jpg').write_bytes(b'')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(SystemExit, match='2'):
        distil(*(str(option).format(folder) for option in options))
    assert message.format(folder) in one_line('distill.py', capsys.readouterr().err)
    assert sorted(tmp_path.rglob('*')) == before


def test_mistake__samples_that_cannot_say_it(files, tmp_path):
    cfg = mixed_config(files, tmp_path)
    check_mixing(cfg)
    cfg.model.student.data_preprocessor.pad_seg = True
    with pytest.raises(ConfigError, match='no segmentation map, which the'):
        check_mixing(cfg)
    cfg.train_dataloader.collate_fn = dict(type='yolov5_collate')
    with pytest.raises(ConfigError, match='yolov5_collate drops the metainfo'):
        check_mixing(cfg)
    cfg.model = fcos()
    with pytest.raises(ConfigError, match='a plain FCOS would learn that UnlabelledImages hold no'):
        check_mixing(cfg)


@pytest.mark.parametrize('batch_sampler', [None, dict(type='mmdet.AspectRatioBatchSampler')])
def test_mistake__epochs_that_never_end(files, tmp_path, capsys, batch_sampler):
    config, path = mixed_config(files, tmp_path / 'run'), tmp_path / 'config.py'
    config.train_dataloader.batch_sampler = batch_sampler
    config.dump(path)
    with pytest.raises(SystemExit, match='2'):
        call_tool('train.py', path)
    line = one_line('train.py', capsys.readouterr().err)
    assert 'MultiSourceSampler never ends an epoch; set batch_sampler=dict(' in line


# Resumed


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_killed__resumes_to_the_bit(files, tmp_path, loop):
    whole, killed = (resumable(files, tmp_path / name, loop) for name in ('whole', 'killed'))
    assert in_child(start, whole) == 0
    for number, (iteration, when) in enumerate(((3, 'after'), (6, 'before'), (10, 'saving'))):
        kill = Kill(iteration, when)
        status = in_child(lambda kill=kill, number=number: start(killed, kill, resume=number > 0))
        assert status == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(final(whole), final(killed))
    logs = [path.read_text() for path in Path(killed.work_dir).glob('*/*.log')]
    assert logs and not any('dataset metainfo' in text for text in logs)  # mmengine's false alarm


def resumable(files, work_dir, loop: str) -> Config:
    config = mixed_config(files, work_dir, max_epochs=EPOCHS)
    checkpoints = dict(type='CheckpointHook', interval=1, by_epoch=False)
    config.default_hooks.checkpoint = checkpoints
    config.train_dataloader.num_workers = 1 if loop == 'epochs' else 0
    if loop == 'iterations':
        config.model.teacher.image_scale = 2
        config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=EPOCHS * BATCHES)
        config.train_dataloader.batch_sampler = None
        config.train_cfg.val_interval = 100
    return config


# Other tools


@pytest.mark.slow
def test_ranks__train_with_the_tool(distil, tmp_path):
    folder = write_images(tmp_path / 'images')

    def on_two(*args):
        return run_tool(*args, '--launcher', 'pytorch', processes=2)

    for labels, scale in (('all', 2), ('none', 1)):
        options = ('--labels', labels, '--teacher-scale', scale, '--work-dir', tmp_path / labels)
        done = distil('--unlabelled', folder, *options, tool=on_two)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / labels / 'epoch_1.pth').is_file()


def test_cache__has_them_too(files, tmp_path):
    config, path = mixed_config(files, tmp_path / 'run', max_epochs=1), tmp_path / 'config.py'
    config.model.losses.neck.loss_weight = 1.0
    config.model.teacher.cache = str(tmp_path / 'cache')
    config.dump(path)
    call_tool('cache_teacher.py', path)
    live = mixed_config(files, tmp_path / 'live', max_epochs=1)
    live.dump(tmp_path / 'live.py')
    call_tool('train.py', path)
    call_tool('train.py', tmp_path / 'live.py')
    cached, expected = (trained_losses(tmp_path / name) for name in ('run', 'live'))
    assert len(cached) == len(expected) == 4
    for step, other in zip(cached, expected):
        assert step == pytest.approx(other, rel=0.05)


@pytest.mark.parametrize('labels', [True, False])
def test_preflight__counts_both_kinds(files, tmp_path, capsys, labels):
    config, path = mixed_config(files, tmp_path / 'run'), tmp_path / 'config.py'
    if not labels:
        config.train_dataloader.dataset = config.train_dataloader.dataset.datasets[1]
        config.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
        config.train_dataloader.batch_sampler = None
        config.model.labels = False
    config.dump(path)
    with pytest.raises(SystemExit) as stopped:
        call_tool('preflight.py', path, '--samples', 8)
    out = capsys.readouterr().out
    counted = '8 with labels, 6 without; a batch has 2 + 2' if labels else '0 with labels, 6 witho'
    assert counted in ' '.join(out.split())
    assert ('task' in out) == labels
    assert stopped.value.code in (0, 1), out
