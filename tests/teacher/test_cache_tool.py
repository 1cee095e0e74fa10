"""tools/cache_teacher.py: complete runs, interruptions, damaged files, and users' mistakes."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from cached_runs import FLIP, cached_run, make_cache, write_files
from runs import call_tool, run_config, run_tool, trained_losses, write_data
from safetensors import safe_open

from rdimkd_det.files.configs import read_config
from rdimkd_det.teacher.acceleration import Acceleration
from rdimkd_det.teacher.cache.images import parts_needed
from rdimkd_det.teacher.cache.store import TeacherCache

SHARD_MB = 0.007  # three of the 16 entries, 2016 bytes each
NUM_SHARDS = 6


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with data, teacher, a config and its cache in small shards."""
    folder = write_files(tmp_path_factory.mktemp('files'))
    make_cache(cached_run(folder, 'config'), '--shard-mb', SHARD_MB)
    return folder


@pytest.fixture
def cache(files, tmp_path):
    """Return a copy of the cache for the test to damage."""
    return Path(shutil.copytree(files / 'cache', tmp_path / 'cache'))


@pytest.fixture
def refused(files, capsys):
    """Call the tool, which must end with a one-line message; return the line."""

    def refused(*args, config=files / 'config.py', tool='cache_teacher.py', status=2) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            call_tool(tool, config, *args)
        assert stopped.value.code == status
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith(f'{tool}: '), lines
        return lines[0]

    return refused


@pytest.fixture
def changed(files, tmp_path):
    """Write the config, modified by ``change(config)``; return its path."""

    def changed(change) -> Path:
        config = cached_run(files, 'changed')
        change(config)
        config.dump(tmp_path / 'changed.py')
        return tmp_path / 'changed.py'

    return changed


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


# At work


def test_shards__are_read_by_the_library(files):
    cache, seen = TeacherCache(files / 'cache'), set()
    for path in (files / 'cache').glob('0*.safetensors'):
        with safe_open(path, 'numpy') as file:
            for key in file.keys():  # noqa: SIM118
                maps = cache.read(key, (64, 80))
                assert np.array_equal(file.get_tensor(key), np.concatenate([*map(np.ravel, maps)]))
                seen.add(key)
    assert seen == {f'{n}:{n}.png{flip}' for n in range(8) for flip in ('', '+flip')}


def test_cache__is_what_it_says(files):
    cache = TeacherCache(files / 'cache')
    assert cache.about['num_entries'] == 16 and cache.about['shard_entries'] == 3
    names = {f'{number:05d}.safetensors' for number in range(NUM_SHARDS)}
    assert set(contents(files / 'cache')) == names | {'cache.json', 'bases.safetensors'}
    for key in ('0:0.png', '7:7.png', '7:7.png+flip'):
        shapes = [maps.shape for maps in cache.read(key, (64, 80))]
        assert shapes == [(8, 8, 12), (8, 4, 6), (8, 2, 3)]
    assert not np.array_equal(*(cache.read(f'1:1.png{f}', (64, 80))[0] for f in ('', '+flip')))


def test_size__is_announced_with_what_is_missing(files, cache, capsys):
    (cache / '00002.safetensors').unlink()
    call_tool('cache_teacher.py', files / 'config.py', '--out', cache)
    line = capsys.readouterr().out
    assert '16 entries of about 0.00 MB make 0.00 GB' in line and '\x1b' not in line
    assert f'{cache} is complete' in line


def test_again__writes_nothing(files, cache):
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    call_tool('cache_teacher.py', files / 'config.py', '--out', cache)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before


def killed_at(replacement: int, *args: object) -> None:
    """Run the tool in a process that is killed after ``replacement`` files, before the next one."""

    def run() -> None:
        torch.set_num_threads(1)
        left, replace = [replacement], os.replace

        def replace_or_die(*paths) -> None:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            replace(*paths)

        with mock.patch('os.replace', replace_or_die):
            call_tool('cache_teacher.py', *args)

    process = multiprocessing.get_context('fork').Process(target=run, daemon=True)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize('files_done', [0, 1, 2, 3, pytest.param(7, marks=pytest.mark.slow)])
def test_killed__goes_on_from_there(files, tmp_path, files_done):
    """Files are moved into place in this order: bases.safetensors, cache.json, then the shards."""
    directory = tmp_path / 'cache'
    args = (files / 'config.py', '--out', directory, '--shard-mb', SHARD_MB)
    killed_at(files_done, *args)
    done = {path: path.stat().st_mtime_ns for path in directory.glob('*.*') if path.name[0] != '.'}
    assert len(done) == files_done
    assert len(list(directory.glob('.*.part'))) == 1
    call_tool('cache_teacher.py', *args)
    for path in done if files_done >= 2 else ():
        assert path.stat().st_mtime_ns == done[path]
    expected = contents(files / 'cache')
    found = contents(directory)
    assert found.keys() == expected.keys()
    if files_done >= 2:  # else the bases were fitted anew, on other flips
        call_tool('cache_teacher.py', files / 'config.py', '--out', directory, '--verify')
    cache = TeacherCache(directory)
    cache.load_index()


def test_two_processes__each_shard_is_somebodys(files, tmp_path, refused):
    """The processes may run at different times; here the second starts when the first has ended."""
    args = ('--out', tmp_path / 'cache', '--shard-mb', SHARD_MB)
    making = 'rdimkd_det.training.cache_making.get_dist_info'
    with mock.patch(making, return_value=(0, 2)):
        assert 'is incomplete: 3 of 6 shards are missing' in refused(*args)
    with mock.patch(making, return_value=(1, 2)):
        call_tool('cache_teacher.py', files / 'config.py', *args)
    assert TeacherCache(tmp_path / 'cache').missing_shards() == []


def test_loader__of_pytorchs_defaults(changed, tmp_path):
    def forget(config):
        del config.train_dataloader['num_workers'], config.train_dataloader['batch_size']

    call_tool('cache_teacher.py', changed(forget), '--out', tmp_path / 'new')
    assert not TeacherCache(tmp_path / 'new').missing_shards()


@pytest.mark.parametrize('hooks', [[], [dict(type='DistillHook', priority=49)]])
def test_hook__may_be_missing_and_have_a_priority(changed, tmp_path, hooks):
    path = changed(lambda cfg: cfg.update(custom_hooks=hooks))
    call_tool('cache_teacher.py', path, '--out', tmp_path / 'cache')
    assert TeacherCache(tmp_path / 'cache').missing_shards() == []


def test_launcher__without_torchrun(refused, tmp_path, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    line = refused('--out', tmp_path / 'cache', '--launcher', 'pytorch')
    assert '--launcher pytorch is for torchrun' in line


@pytest.mark.slow
def test_two_processes__make_it_and_train_from_it(files, tmp_path):
    config = cached_run(files, 'two')
    config.train_dataloader.dataset.pipeline[FLIP].prob = 0.0
    config.train_dataloader.batch_size = 2
    config.work_dir, config.model.teacher.cache = str(tmp_path / 'run'), str(tmp_path / 'one')
    one = TeacherCache(make_cache(config, '--shard-mb', SHARD_MB))
    config.model.teacher.cache = str(tmp_path / 'two')
    config.dump(tmp_path / 'config.py')
    arguments = (tmp_path / 'config.py', '--launcher', 'pytorch')
    done = run_tool('cache_teacher.py', *arguments, '--shard-mb', SHARD_MB, processes=2)
    assert done.returncode == 0, done.stderr
    two = TeacherCache(tmp_path / 'two')
    for number in range(8):
        maps = zip(*(c.read(f'{number}:{number}.png', (64, 80)) for c in (one, two)))
        for expected, found in maps:
            assert np.allclose(found, expected, rtol=1e-2, atol=1e-3 * abs(expected).max())
    done = run_tool('train.py', *arguments, processes=2)
    assert done.returncode == 0, done.stderr
    assert len(trained_losses(config.work_dir)) == 4


# Damage


@pytest.mark.parametrize('place', [200, -1])
def test_verify__names_the_damaged_shard(files, cache, refused, place):
    call_tool('cache_teacher.py', files / 'config.py', '--out', cache, '--verify')
    flip_byte(cache / '00003.safetensors', place)
    line = refused('--out', cache, '--verify', status=1)
    assert f'{cache}/00003.safetensors is ' in line
    if place == -1:
        assert ' is damaged (a checksum differs); delete it and run' in line
    (cache / '00003.safetensors').unlink()
    call_tool('cache_teacher.py', files / 'config.py', '--out', cache)
    call_tool('cache_teacher.py', files / 'config.py', '--out', cache, '--verify')
    for number in range(NUM_SHARDS):
        name = f'{number:05d}.safetensors'
        assert (cache / name).read_bytes() == (files / 'cache' / name).read_bytes()


@pytest.mark.parametrize('num_bytes', [1000, 10])
def test_truncated_shard__is_missing_and_made_anew(files, cache, refused, num_bytes):
    content = (cache / '00001.safetensors').read_bytes()
    (cache / '00001.safetensors').write_bytes(content[:-num_bytes])
    assert '00001.safetensors is missing or cut short' in refused(
        '--out', cache, '--verify', status=1
    )
    call_tool('cache_teacher.py', files / 'config.py', '--out', cache)
    assert (cache / '00001.safetensors').read_bytes() == content


def test_training__stops_at_a_damaged_shard(files, cache, refused, changed):
    for number in range(NUM_SHARDS):
        flip_byte(cache / f'{number:05d}.safetensors', -1)
    config = changed(lambda config: config.model.teacher.update(cache=str(cache)))
    line = refused('--work-dir', cache.parent / 'work', config=config, tool='train.py')
    assert '.safetensors is damaged (a checksum differs)' in line


def test_training__refuses_an_incomplete_cache(cache, refused, changed):
    (cache / '00004.safetensors').unlink()
    config = changed(lambda config: config.model.teacher.update(cache=str(cache)))
    work_dir = cache.parent / 'work'
    line = refused('--work-dir', work_dir, config=config, tool='train.py')
    assert 'is incomplete: 1 of 6 shards are missing (the first is 00004.safetensors)' in line
    assert not work_dir.exists()


@pytest.mark.parametrize('name', ['bases.safetensors', 'cache.json'])
def test_damaged_head(cache, refused, name):
    (cache / name).write_bytes((cache / name).read_bytes()[:-20])
    assert f'teacher cache {cache} is damaged' in refused('--out', cache)


def test_cache_of_an_earlier_version__is_refused_with_what_to_do(cache, refused, changed):
    content = json.loads((cache / 'cache.json').read_text())
    (cache / 'cache.json').write_text(json.dumps({**content, 'format': 1}))
    config = changed(lambda config: config.model.teacher.update(cache=str(cache)))
    advice = 'delete the directory and make the cache again: python tools/cache_teacher.py CONFIG '
    advice += f'--out {cache}'
    assert advice in refused('--out', cache)
    assert advice in refused('--work-dir', cache.parent / 'work', config=config, tool='train.py')


def test_shards_of_another_cache__are_not_taken_for_its_own(files, cache):
    """The user deleted cache.json to start anew, but left the shards."""
    other = cached_run(files, 'other', projection=dict(type='RandomProjection', dim=8))
    other.model.teacher.cache = str(cache)
    old = contents(cache)
    (cache / 'cache.json').unlink()
    make_cache(other, '--shard-mb', SHARD_MB)
    new = contents(cache)
    assert old.keys() == new.keys()
    assert all(new[name] != old[name] for name in old)


# The disk


def test_room__is_looked_at_first(tmp_path, refused):
    usage = shutil.disk_usage('/')._replace(free=20_000)
    with mock.patch('shutil.disk_usage', return_value=usage):
        line = refused('--out', tmp_path / 'new')
    assert 'the disk has room for 0.00 GB; make room, give another --out' in line
    assert not list((tmp_path / 'new').glob('0*.safetensors'))


def test_disk_full__leaves_whole_shards(files, tmp_path, refused):
    directory, sync, left = tmp_path / 'new', os.fsync, [8]

    def sync_or_fail(descriptor) -> None:
        left[0] -= 1  # file and directory of bases, cache.json and two shards
        if left[0] < 0:
            raise OSError(errno.ENOSPC, 'No space left on device')
        sync(descriptor)

    with mock.patch('os.fsync', sync_or_fail):
        line = refused('--out', directory, '--shard-mb', SHARD_MB)
    assert 'No space left on device' in line and 'finished shards are intact' in line
    assert sorted(path.name for path in directory.glob('0*')) == [
        f'0000{number}.safetensors' for number in (0, 1)
    ]
    assert not list(directory.glob('.*'))
    call_tool('cache_teacher.py', files / 'config.py', '--out', directory)


# Mistakes


def test_mistakes__of_the_command_line(refused, tmp_path):
    assert 'config nowhere.py not found' in refused(config='nowhere.py')
    assert '--shard-mb must be above 0, got 0.0' in refused('--shard-mb', 0)
    assert '--batch-size must be 1 or more, got 0' in refused('--batch-size', 0)
    assert '--workers must be 0 or more, got -1' in refused('--workers', -1)
    assert 'nowhere is not there' in refused('--out', tmp_path / 'nowhere', '--verify')
    assert 'teacher cache /proc/cache cannot be written: No such' in refused('--out', '/proc/cache')


def test_mistakes__of_the_config(files, refused, changed, tmp_path):
    def augment(config):
        pipeline = config.train_dataloader.dataset.pipeline
        pipeline.insert(2, dict(type='PhotoMetricDistortion'))

    def forget_the_weights(config):
        config.model.teacher.checkpoint = str(tmp_path / 'nowhere.pth')

    def forget_the_cache(config):
        del config.model.teacher['cache']

    out = ('--out', tmp_path / 'new')
    assert 'pipeline has PhotoMetricDistortion, ' in refused(*out, config=changed(augment))
    assert 'nowhere.pth does not exist' in refused(*out, config=changed(forget_the_weights))
    assert '--out DIR is missing' in refused(config=changed(forget_the_cache))
    off = changed(lambda config: config.model.losses.neck.update(loss_weight=0))
    assert 'no loss has a weight, nothing is to be stored' in refused(*out, config=off)
    assert not (tmp_path / 'new').exists()


def test_mistakes__a_plain_config(files, refused, tmp_path):
    config = cached_run(files)
    run_config(files / 'data', tmp_path, config.model.student).dump(tmp_path / 'plain.py')
    assert 'has no model.teacher: its model is a plain one' in refused(config=tmp_path / 'plain.py')


def test_mistakes__cache_of_another_config(cache, refused, changed):
    before = contents(cache)
    config = changed(lambda config: config.model.losses.neck.projection.update(dim=4))
    line = refused('--out', cache, config=config)
    assert "was made with other dim in projection at 'neck': 8; this config has 4." in line
    assert contents(cache) == before


@pytest.mark.parametrize('num_images', [7, 9])
def test_mistakes__cache_of_other_images(files, cache, refused, changed, tmp_path, num_images):
    """One of the data as they were before an image was added or removed, complete or not."""
    data = write_data(tmp_path / 'data', num_images)
    config = changed(lambda config: config.train_dataloader.dataset.update(data_root=str(data)))
    for harm in (lambda: None, (cache / '00002.safetensors').unlink):
        harm()
        before = contents(cache)
        line = refused('--out', cache, config=config)
        assert 'was made with other images: 8 (their names: ' in line
        assert f'this config has {num_images} (' in line
        assert contents(cache) == before


def test_several_teachers__each_has_its_directory(files, changed, tmp_path):
    def another(config):
        teacher = {k: v for k, v in config.model.teacher.items() if k != 'cache'}
        config.model.teacher = [dict(teacher, name='a'), dict(teacher, name='b')]

    path = changed(another)
    call_tool('cache_teacher.py', path, '--out', tmp_path / 'both')
    assert read_config(str(path), 'test').model.teacher[0].name == 'a'
    for name in 'ab':
        assert TeacherCache(tmp_path / 'both' / name).missing_shards() == []


def test_several_teachers__one_without_weight_has_nothing_to_store(files, changed, tmp_path):
    def another(config):
        teacher = {k: v for k, v in config.model.teacher.items() if k != 'cache'}
        off = {tap: dict(loss, loss_weight=0) for tap, loss in config.model.losses.items()}
        config.model.teacher = [dict(teacher, name='a'), dict(teacher, name='off', losses=off)]

    call_tool('cache_teacher.py', changed(another), '--out', tmp_path / 'both')
    assert [path.name for path in (tmp_path / 'both').iterdir()] == ['a']


def test_fit__with_the_hooks_default_number_of_images(changed, tmp_path):
    config = changed(lambda config: config.custom_hooks[0].pop('calibration_images'))
    call_tool('cache_teacher.py', config, '--out', tmp_path / 'cache')
    assert TeacherCache(tmp_path / 'cache').about['num_entries'] > 0


def test_amp__the_teacher_runs_in_the_precision_of_the_training(changed, tmp_path):
    """Fitting the bases and making the maps run outside of the training's autocast."""
    amp = dict(type='AmpOptimWrapper', dtype='bfloat16')
    config = changed(lambda config: config.optim_wrapper.update(amp))
    precisions, dtype = [], Acceleration.dtype

    def as_on_a_gpu(self, device, *args):
        precisions.append(dtype(self, torch.device('cuda'), *args))
        return precisions[-1]

    with mock.patch.object(Acceleration, 'dtype', as_on_a_gpu):
        call_tool('cache_teacher.py', config, '--out', tmp_path / 'cache')
    assert precisions == [torch.bfloat16]  # found once, and kept


def test_maps__that_half_precision_cannot_hold(files, tmp_path, refused):
    weights = torch.load(files / 'teacher/teacher.pth', weights_only=True)
    weights['state_dict']['neck.fpn_convs.2.conv.bias'][:] = 1e5
    torch.save(weights, tmp_path / 'teacher.pth')
    config = cached_run(files, 'broken', projection=dict(type='RandomProjection', dim=8))
    config.model.teacher.checkpoint = str(tmp_path / 'teacher.pth')
    config.dump(tmp_path / 'config.py')
    args = ('--out', tmp_path / 'new')
    line = refused(*args, config=tmp_path / 'config.py', status=1)
    assert "the teacher's maps hold NaN, infinity, or values beyond half precision" in line
    assert not (tmp_path / 'new').exists()


def test_preprocessor__at_the_top_of_the_config(changed, tmp_path):
    """Checks and tools build the same model as the Runner."""

    def move(config):
        config.data_preprocessor = config.model.student.pop('data_preprocessor')

    config = changed(move)
    call_tool('cache_teacher.py', config, '--out', tmp_path / 'cache')
    cache = f'model.teacher.cache={tmp_path / "cache"}'
    call_tool('train.py', config, '--work-dir', tmp_path / 'work', '--cfg-options', cache)
    assert len(trained_losses(tmp_path / 'work')) == 4


def doubled(root: str | None = None):
    """Return what concatenates a config's training set with itself, or with one at ``root``."""

    def change(config):
        leaf = config.train_dataloader.dataset
        other = {**leaf, 'data_root': str(root or leaf.data_root)}
        config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[leaf, other])
        config.train_cfg.max_epochs = 1

    return change


def test_concatenated__equal_names_and_ids_of_two_exports(files, changed, tmp_path):
    """As two exports have them; the maps are those of each one's own image."""
    other = write_data(tmp_path / 'export/data', size=(48, 80))
    config = changed(doubled(other))
    call_tool('cache_teacher.py', config, '--out', tmp_path / 'cache')
    cache = TeacherCache(tmp_path / 'cache')
    cache.load_index()
    sizes = sorted(entry.image_shape for entry in cache.entries.values())
    assert len(sizes) == 2 * 2 * 8 and len(set(sizes)) == 2  # two sets, flipped too
    call_tool('train.py', config, '--work-dir', tmp_path / 'work', '--cfg-options',
              f'model.teacher.cache={tmp_path / "cache"}')  # fmt: skip
    assert (tmp_path / 'work/epoch_1.pth').is_file()


def test_concatenated__the_same_files_are_stored_once(changed, tmp_path):
    config = changed(doubled())
    call_tool('cache_teacher.py', config, '--out', tmp_path / 'cache')
    cache = TeacherCache(tmp_path / 'cache')
    assert cache.about['num_entries'] == 2 * 8 and cache.path_parts == 1


@pytest.mark.parametrize(
    'paths, needed',
    [
        (['a/images/1.png', 'a/images/2.png'], 1),
        (['a/images/1.png', 'a/more/1.png'], 2),
        (['a/images/1.png', 'b/images/1.png', 'b/images/1.png'], 3),
        (['a/images/1.png', 'a/images/1.png'], 1),
        ([], 1),
    ],
)
def test_parts_needed(paths, needed):
    images = [dict(img_id=0, img_path=path) for path in paths]
    assert parts_needed(images) == needed
    assert parts_needed([{**it, 'img_id': n} for n, it in enumerate(images)]) == 1
