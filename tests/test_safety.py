"""Untrusted files: no tool runs code from one, or writes outside of the work directory."""

import hashlib
import http.server
import inspect
import json
import os
import pickle
import re
import threading
from functools import partial
from pathlib import Path

import mmdet.registry
import mmengine
import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData
from runs import (
    REPOSITORY,
    call_tool,
    distilled,
    fcos,
    load,
    run_config,
    write_data,
    write_teacher,
)

from rdimkd_det import ConfigError
from rdimkd_det.commands.outputs import PATHS, PATHS_BELOW, check_outputs
from rdimkd_det.files.checkpoints import load_checkpoint_safely
from rdimkd_det.files.untrusted import DataPickleHandler, DataYamlHandler


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with data, a teacher, and configs of a distilled and a plain student."""
    folder = tmp_path_factory.mktemp('files')
    data, teacher = write_data(folder / 'data'), write_teacher(folder / 'teacher')
    model = distilled(fcos(), teacher)
    run_config(data, folder / 'unused', model, max_epochs=1).dump(folder / 'distilled.py')
    run_config(data, folder / 'unused', fcos(), max_epochs=1).dump(folder / 'plain.py')
    return folder


@pytest.fixture
def refused(tmp_path, capsys):
    """Call a tool that must end with a one-line message and status 2; return the line."""

    def refused(tool, *args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            call_tool(tool, *args)
        lines = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and len(lines) == 1, lines
        return lines[0]

    return refused


# Checkpoints


class Payload:
    """Makes a folder when it is unpickled unsafely."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def of_teacher(files, path, work):
    return (
        'train.py',
        files / 'distilled.py',
        *work,
        '--cfg-options',
        f'model.teacher.checkpoint={path}',
    )


def of_load_from(files, path, work):
    return 'train.py', files / 'distilled.py', *work, '--cfg-options', f'load_from={path}'


def of_init_cfg(files, path, work):
    entry = 'model.student.backbone.init_cfg'
    options = (f'{entry}.type=Pretrained', f'{entry}.checkpoint={path}')
    return 'train.py', files / 'distilled.py', *work, '--cfg-options', *options


def of_init_cfg_override(files, path, work):
    cfg = Config.fromfile(files / 'plain.py')
    override = dict(type='Pretrained', name='conv_cls', checkpoint=str(path))
    cfg.model.bbox_head.init_cfg = [dict(type='Normal', layer='Conv2d', override=[override])]
    cfg.dump(path.with_name('changed.py'))
    return 'train.py', path.with_name('changed.py'), *work


def of_resume(files, path, work):
    return 'train.py', files / 'distilled.py', *work, '--resume', path


def of_last_checkpoint(files, path, work):
    work[1].mkdir(parents=True)
    (work[1] / 'last_checkpoint').write_text(str(path))
    return 'train.py', files / 'distilled.py', *work, '--resume'


def of_test(files, path, work):
    return 'test.py', files / 'distilled.py', path, *work


def of_distill(files, path, work):
    return 'distill.py', files / 'plain.py', files / 'teacher/teacher.py', path, *work, '--dim', 8


def of_analyze_projection(files, path, work):
    cfg = Config.fromfile(files / 'distilled.py')
    cfg.model.teacher.checkpoint = str(path)
    work[1].mkdir(parents=True)
    cfg.dump(work[1] / 'changed.py')
    return 'analyze_projection.py', work[1] / 'changed.py', '--out', work[1] / 'spectrum.png'


def of_export(files, path, work):
    return 'export_student.py', path, '--config', files / 'plain.py', '--out', work[1] / 's.pth'


def of_preflight(files, path, work):
    options = ('--cfg-options', f'model.teacher.checkpoint={path}')
    return 'preflight.py', files / 'distilled.py', '--samples', 0, *options


def of_cache_teacher(files, path, work):
    options = ('--cfg-options', f'model.teacher.checkpoint={path}')
    return 'cache_teacher.py', files / 'distilled.py', '--out', work[1], *options


def of_benchmark(files, path, work):
    options = ('--cfg-options', f'model.teacher.checkpoint={path}')
    return 'benchmark.py', files / 'distilled.py', '--shape', 64, 80, '--rounds', 1, *options


def of_visualize(files, path, work):
    image = files / 'data/images/0.png'
    return 'visualize.py', files / 'distilled.py', path, image, '--out', work[1] / 'x.png'


# A tool that reads a checkpoint gets a line here.
READERS = [
    of_teacher,
    of_load_from,
    of_init_cfg,
    of_init_cfg_override,
    of_resume,
    of_last_checkpoint,
    of_test,
    of_distill,
    of_analyze_projection,
    of_export,
    of_preflight,
    of_cache_teacher,
    of_benchmark,
    of_visualize,
]


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('reader', READERS)
def test_checkpoint__payload_does_not_run(files, refused, tmp_path, monkeypatch, reader, zipped):
    monkeypatch.syspath_prepend(REPOSITORY / 'tools')  # benchmark.py imports from beside it
    weights = load(files / 'teacher/teacher.pth')['state_dict']
    proof, path = tmp_path / 'payload_ran', tmp_path / 'malicious.pth'
    content = dict(state_dict=weights, meta=dict(epoch=1, iter=1), payload=Payload(proof))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    line = refused(*reader(files, path, ('--work-dir', tmp_path / 'work')))
    assert 'malicious.pth holds more than plain data' in line and 'could run code' in line
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # it would have


def test_checkpoint__payload_does_not_run_for_a_report(files, tmp_path, capsys):
    """The report is made from the logs alone; it says so, and the tool succeeds."""
    work = tmp_path / 'work'
    call_tool('train.py', files / 'plain.py', '--work-dir', work)
    proof, path = tmp_path / 'payload_ran', work / 'malicious.pth'
    content = load(work / 'epoch_1.pth') | dict(payload=Payload(proof))
    torch.save(content, path)
    (work / 'last_checkpoint').write_text(str(path))
    call_tool('report.py', work, '--out', tmp_path / 'report.html')
    said = capsys.readouterr().err
    assert 'No AP by class or size of work' in said and 'could run code' in said
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # it would have


def test_checkpoint__python_in_it_is_not_run_to_resume(files, refused, tmp_path):
    """mmengine's Runner executes meta['config'] of what it resumes."""
    proof, path = tmp_path / 'payload_ran', tmp_path / 'malicious.pth'
    code = f"__import__('os').mkdir({str(proof)!r})"
    weights = load(files / 'teacher/teacher.pth')['state_dict']
    torch.save(dict(state_dict=weights, meta=dict(epoch=1, iter=1, config=code)), path)
    for reader in (of_resume, of_last_checkpoint):
        line = refused(*reader(files, path, ('--work-dir', tmp_path / 'work')))
        assert "holds Python code (meta['config'])" in line and f'load_from={path}' in line
    assert not proof.exists()
    Config.fromstring(code, '.py')
    assert proof.exists()  # it would have


def test_checkpoint__only_weights_cannot_be_resumed(files, refused):
    path = files / 'teacher/teacher.pth'
    line = refused('train.py', files / 'distilled.py', '--resume', path)
    assert 'cannot be resumed' in line


# Data files


def test_data_file__pickle_with_payload(files, refused, tmp_path):
    proof, path = tmp_path / 'payload_ran', tmp_path / 'annotations.pkl'
    path.write_bytes(pickle.dumps(Payload(proof)))
    line = refused(
        'train.py',
        files / 'plain.py',
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        'train_dataloader.dataset.type=BaseDetDataset',
        f'train_dataloader.dataset.ann_file={path}',
    )
    assert 'asks for posix.mkdir, which is not data' in line and not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists()


def test_data_file__pickle_with_data(tmp_path):
    content = [
        {'bboxes': torch.eye(2).numpy(), 'names': ('a', {'b'}), 'n': torch.ones(1).numpy()[0]}
    ]
    for protocol in range(2, 6):
        path = tmp_path / f'{protocol}.pkl'
        path.write_bytes(pickle.dumps(content, protocol))
        with path.open('rb') as file:
            (found,) = DataPickleHandler().load_from_fileobj(file)
        assert (found['bboxes'] == content[0]['bboxes']).all()
        assert found['names'] == ('a', {'b'}) and found['n'] == 1


def test_data_file__pickle_of_proposals(tmp_path):
    """As mmdet's DumpProposals writes it for Fast R-CNN."""
    path, proposals = tmp_path / 'proposals.pkl', InstanceData(bboxes=torch.eye(4).numpy())
    path.write_bytes(pickle.dumps({'a.jpg': proposals}))
    with path.open('rb') as file:
        found = DataPickleHandler().load_from_fileobj(file)
    assert (found['a.jpg'].bboxes == proposals.bboxes).all()


@pytest.mark.parametrize('function', ['builtins.getattr', 'builtins.eval', 'operator.attrgetter'])
def test_data_file__pickle_of_a_function(tmp_path, function):
    module, name = function.split('.')
    text = f'c{module}\n{name}\n.'
    (tmp_path / 'x.pkl').write_text(text)
    assert callable(pickle.loads(text.encode()))
    with (tmp_path / 'x.pkl').open('rb') as file, pytest.raises(pickle.UnpicklingError, match=name):
        DataPickleHandler().load_from_fileobj(file)


def test_data_file__yaml_with_payload(tmp_path):
    proof = tmp_path / 'payload_ran'
    path = tmp_path / 'x.yaml'
    path.write_text(f'a: !!python/object/apply:os.mkdir [{str(proof)!r}]')
    with path.open() as file, pytest.raises(Exception, match='could not determine a constructor'):
        DataYamlHandler().load_from_fileobj(file)
    assert not proof.exists()
    path.write_text('a: [1, b]')
    with path.open() as file:
        assert DataYamlHandler().load_from_fileobj(file) == {'a': [1, 'b']}


# Downloads


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve ``tmp_path / 'www'``, with downloads to ``tmp_path / 'cache'``; yield the URL."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    (tmp_path / 'www').mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            """Silent."""

    handler = partial(Handler, directory=str(tmp_path / 'www'))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def publish(tmp_path: Path, source: Path, digest: str | None = None) -> str:
    content = source.read_bytes()
    name = f'w-{digest or hashlib.sha256(content).hexdigest()[:8]}.pth'
    (tmp_path / 'www' / name).write_bytes(content)
    return name


@pytest.mark.parametrize('reader', [of_teacher, of_load_from, of_init_cfg, of_resume, of_test])
def test_download__of_another_hash(files, refused, server, tmp_path, reader):
    name = publish(tmp_path, files / 'teacher/teacher.pth', '0123abcd')
    line = refused(*reader(files, f'{server}/{name}', ('--work-dir', tmp_path / 'work')))
    digest = hashlib.sha256((files / 'teacher/teacher.pth').read_bytes()).hexdigest()[:8]
    assert f'its SHA-256 begins with {digest}, its name says 0123abcd' in line
    assert not list((tmp_path / 'cache').rglob('*.pth'))


def test_download__of_its_hash(files, server, tmp_path):
    name = publish(tmp_path, files / 'teacher/teacher.pth')
    expected = load(files / 'teacher/teacher.pth')['state_dict']
    assert load_checkpoint_safely(f'{server}/{name}', 'teacher').keys() == expected.keys()
    (tmp_path / 'www' / name).unlink()
    assert load_checkpoint_safely(f'{server}/{name}', 'teacher')  # it is there already
    (cached,) = (tmp_path / 'cache').rglob(name)
    cached.write_bytes(cached.read_bytes()[:-1])  # torch and mmengine would take it
    with pytest.raises(ConfigError, match='SHA-256 begins with'):
        load_checkpoint_safely(f'{server}/{name}', 'teacher')


def test_download__name_without_hash(files, server, tmp_path):
    path = tmp_path / 'www/resnet-caffe.pth'  # hex digits, but no hash
    path.write_bytes((files / 'teacher/teacher.pth').read_bytes())
    assert load_checkpoint_safely(f'{server}/resnet-caffe.pth', 'teacher')


def test_download__not_there(server):
    with pytest.raises(ConfigError, match=r'teacher: checkpoint .*none.pth cannot be read.*404'):
        load_checkpoint_safely(f'{server}/none.pth', 'teacher')


def test_named_weights__misspelled():
    name = 'open-mmlab://detectron2/resnet50_caffe'
    assert name[13:] in mmengine.runner.checkpoint.get_external_models()
    with pytest.raises(ConfigError, match="did you mean 'detectron2/resnet50_caffe'"):
        load_checkpoint_safely(name.replace('caffe', 'cafe'), 'init_cfg')


# What is written


OUTSIDE = [
    ('default_hooks.checkpoint.out_dir', 'PARENT'),
    ('default_hooks.checkpoint.filename_tmpl', '../../epoch_{}.pth'),
    ('default_hooks.logger.out_dir', 'PARENT'),
    ('default_hooks.visualization.test_out_dir', 'PARENT'),
    ('val_evaluator.outfile_prefix', 'PARENT/results'),
    ('val_evaluator.outfile_prefix', 'WORK/../results'),
    ('val_evaluator.outfile_prefix', 'WORK_of_another/results'),
    ('val_evaluator.outfile_prefix', 'relative/results'),
    ('visualizer.save_dir', 'PARENT'),
    ('visualizer.vis_backends.0.save_dir', 's3://bucket/logs'),
    ('custom_hooks.0.on_trace_ready', dict(type='tb_trace', dir_name='PARENT')),
    ('custom_hooks.0.result_path', 'PARENT'),  # NPUProfilerHook
    ('val_evaluator.outfile_path', 'PARENT/x.jsonl'),  # DumpODVGResults
    ('visualizer.vis_backends.0.tracking_uri', 'file://PARENT/mlruns'),  # MLflowVisBackend
    ('visualizer.vis_backends.0.tracking_uri', 'file:PARENT/mlruns'),
    ('visualizer.vis_backends.0.tracking_uri', 'sqlite:///WORK/runs.db'),
    ('visualizer.vis_backends.0.init_kwargs', dict(repo='PARENT')),  # AimVisBackend
]

# Parameters of hooks, metrics and visualizers that sound like an output, and are none.
NO_OUTPUTS = {
    'ann_file', 'img_prefix', 'seg_prefix', 'rfstructure_file',  # are read
    'prefix',  # of a metric's name
    'out_suffix',  # which files of the work directory are copied to out_dir
    'file_client_args',  # the options of a backend
    'profile_memory', 'profile_times', 'use_e2e_profiler', 'ge_profiling_to_std_out',  # switches
}  # fmt: skip


def changed_config(files, tmp_path, place, value) -> Path:
    work = tmp_path / 'work'
    text = json.dumps(value).replace('PARENT', str(tmp_path)).replace('WORK', str(work))
    content = Config.fromfile(files / 'plain.py').to_dict()
    content['custom_hooks'] = [dict(type='NumClassCheckHook')]
    node = content
    *parents, last = place.split('.')
    for key in parents:
        node = node[int(key) if key.isdigit() else key]
    node[last] = json.loads(text)
    path = tmp_path / 'changed.py'
    path.write_text('\n'.join(f'{key} = {entry!r}' for key, entry in content.items()))
    return path


def parameters(cls) -> set[str]:
    """Return the parameters of a class's constructor and of its base classes' constructors."""
    constructors = [vars(base)['__init__'] for base in cls.__mro__ if '__init__' in vars(base)]
    return {name for each in constructors for name in inspect.signature(each).parameters}


@pytest.mark.parametrize('registry', ['HOOKS', 'METRICS', 'VISBACKENDS', 'VISUALIZERS'])
def test_output__every_option_of_the_host_is_known(registry):
    """A new parameter must be reviewed and added to one of the lists."""
    register_all_modules()
    registry = getattr(mmdet.registry, registry)
    classes = [*registry.module_dict.values(), *registry.parent.module_dict.values()]
    host = [cls for cls in classes if cls.__module__.split('.')[0] in ('mmdet', 'mmengine', 'mmcv')]
    assert len(host) >= 2
    outputs = {
        f'{cls.__name__}.{name}'
        for cls in host
        for name in parameters(cls) - PATHS - PATHS_BELOW - NO_OUTPUTS
        if re.search('out|dir|path|file|prefix|uri|repo', name)
    }
    assert not outputs


@pytest.mark.parametrize('place, value', OUTSIDE)
def test_output__outside_of_the_work_dir_is_refused(files, refused, tmp_path, place, value):
    config = changed_config(files, tmp_path, place, value)
    before = sorted(tmp_path.rglob('*'))
    line = refused('train.py', config, '--work-dir', tmp_path / 'work')
    assert f'{place}' in line and 'outside of the work directory' in line
    assert sorted(tmp_path.rglob('*')) == before


def test_output__through_a_link_is_refused(files, refused, tmp_path):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'work/link').symlink_to(tmp_path / 'elsewhere')
    config = changed_config(files, tmp_path, 'val_evaluator.outfile_prefix', 'WORK/link/results')
    line = refused('train.py', config, '--work-dir', tmp_path / 'work')
    assert 'outside of the work directory' in line


def test_output__inside_or_typed_is_fine(files, tmp_path):
    config = changed_config(files, tmp_path, 'val_evaluator.outfile_prefix', 'WORK/results/a')
    typed = f'default_hooks.checkpoint.out_dir={tmp_path / "checkpoints"}'
    call_tool('train.py', config, '--work-dir', tmp_path / 'work', '--cfg-options', typed)
    assert (tmp_path / 'work/results/a.bbox.json').exists()
    assert (tmp_path / 'checkpoints/work/epoch_1.pth').exists()


def test_output__below_work_dirs_is_fine(tmp_path, monkeypatch):
    """MMDetection's own Cityscapes configs write there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'work_dirs').mkdir()
    (tmp_path / 'work_dirs/link').symlink_to(tmp_path / 'elsewhere')

    def check(option, path):
        cfg = dict(work_dir='runs/mine', val_evaluator=[dict(type='CocoMetric', **{option: path})])
        check_outputs(Config(cfg), given={})

    check('outfile_prefix', './work_dirs/cityscapes_metric/instance')
    for path in (
        'work_dirs',  # a prefix: the file would lie beside
        'work_dirs/../results',
        'work_dirs_of_others/results',
        'work_dirs/link/results',
        '/work_dirs/results',
    ):
        with pytest.raises(ConfigError, match='outside of the work directory'):
            check('outfile_prefix', path)
    with pytest.raises(ConfigError, match='outside of the work directory'):
        check('test_out_dir', '../../work_dirs/other')  # it is taken from the work directory


@pytest.mark.parametrize(
    'name, value',
    [('tracking_uri', 'https://runs.example.org'), ('repo', 'aim://10.0.0.1:53800')],
)
def test_output__to_a_tracking_server_is_fine(tmp_path, name, value):
    check_outputs(Config(dict(work_dir=str(tmp_path), vis_backends=[{name: value}])), given={})
    inside = f'file://{tmp_path}/mlruns'
    check_outputs(Config(dict(work_dir=str(tmp_path), vis_backends=[{name: inside}])), given={})
