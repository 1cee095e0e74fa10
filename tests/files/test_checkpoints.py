import hashlib
import os
import pickle
import types

import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from rdimkd_det import ConfigError
from rdimkd_det.files.atomic import sha256_of
from rdimkd_det.files.checkpoints import (
    dataset_meta_of,
    digest_of,
    digest_of_file,
    hub_path,
    load_checkpoint_safely,
)
from rdimkd_det.teacher.source import checkpoint_facts

WEIGHTS = {'neck.weight': torch.arange(2000.0), 'neck.steps': torch.tensor(3)}


def load(path):
    return load_checkpoint_safely(str(path), who='teacher')


def save(path, content, **options):
    torch.save(content, path, **options)
    return path


class RunsCode:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    'content',
    [
        {'state_dict': WEIGHTS, 'meta': {'epoch': 1}},
        {'state_dict': {f'module.{key}': value for key, value in WEIGHTS.items()}},
        WEIGHTS,
        {'state_dict': {**WEIGHTS, 'note': 'text'}, 'message_hub': {'lr': HistoryBuffer([1], [1])}},
    ],
    ids=['mmengine', 'wrapped', 'bare', 'of a run'],
)
def test_load__weights(tmp_path, content):
    weights = load(save(tmp_path / 'w.pth', content))
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[key], WEIGHTS[key]) for key in WEIGHTS)


def test_load__only_a_leading_module_is_cut(tmp_path):
    path = save(tmp_path / 'w.pth', {'neck.module.weight': torch.ones(1)})
    assert list(load(path)) == ['neck.module.weight']


def test_load__missing(tmp_path):
    with pytest.raises(ConfigError, match=r'teacher: checkpoint .*/none.pth does not exist\.$'):
        load(tmp_path / 'none.pth')


def test_load__code_is_not_run(tmp_path):
    target = tmp_path / 'made by the pickle'
    path = save(tmp_path / 'w.pth', {'state_dict': WEIGHTS, 'x': RunsCode(target)})
    with pytest.raises(ConfigError, match=r'could run code \(it asks for posix.mkdir\)'):
        load(path)
    assert not target.exists()
    with open(path, 'wb') as file:
        pickle.dump(RunsCode(target), file, protocol=2)
    with pytest.raises(ConfigError, match=r'w.pth'):
        load(path)
    assert not target.exists()
    torch.load(save(path, RunsCode(target)), weights_only=False)
    assert target.exists()  # it would have


def test_load__message_does_not_teach_how_to_load_unsafely(tmp_path):
    path = save(tmp_path / 'w.pth', {'state_dict': WEIGHTS, 'cfg': types.SimpleNamespace()})
    with pytest.raises(ConfigError, match=r'asks for types.SimpleNamespace') as caught:
        load(path)
    assert 'weights_only' not in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('share', [0, 0.3, 0.9])
def test_load__truncated(tmp_path, share, zipped):
    path = save(tmp_path / 'w.pth', WEIGHTS, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ConfigError, match=r'w.pth (cannot be read|is no checkpoint), .*damaged'):
        load(path)


def test_load__a_web_page(tmp_path):
    path = tmp_path / 'w.pth'
    path.write_text('<html>404: not found</html>')
    with pytest.raises(ConfigError, match=r'w.pth is no checkpoint, or is damaged'):
        load(path)


def test_safetensors__is_read_as_such(tmp_path):
    save_file(WEIGHTS, tmp_path / 'w.safetensors', {'format': 'pt'})
    for mapped in (False, True):
        weights = load_checkpoint_safely(str(tmp_path / 'w.safetensors'), 'teacher', mapped)
        assert weights.keys() == WEIGHTS.keys()
        assert all(torch.equal(weights[key], WEIGHTS[key]) for key in WEIGHTS)


@pytest.mark.parametrize('mapped', [False, True])
def test_safetensors__missing_damaged_or_a_pickle(tmp_path, mapped):
    def refused(message):
        with pytest.raises(ConfigError, match=message) as caught:
            load_checkpoint_safely(str(path), 'teacher', mapped)
        assert '\n' not in str(caught.value)

    path = tmp_path / 'w.safetensors'
    refused('w.safetensors does not exist')
    save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-8])
    refused('w.safetensors cannot be read, it is damaged')
    save(path, WEIGHTS)
    refused('w.safetensors cannot be read, it is damaged')


@pytest.mark.parametrize('content', [{'meta': {}}, {'state_dict': {}}, [1, 2], torch.ones(2)])
def test_load__no_weights(tmp_path, content):
    with pytest.raises(ConfigError, match=r'w.pth holds no state_dict'):
        load(save(tmp_path / 'w.pth', content))


@pytest.mark.parametrize(
    'content, held',
    [
        (
            {'model': {'a': torch.ones(1), 'b': torch.ones(2)}, 'epoch': 3},
            "'model' (2 tensors), 'epoch' (int); save content['model'] to a file of its own.",
        ),
        ({'meta': {}}, "'meta' (dict)."),
        ({'state_dict': {}}, "'state_dict' (dict)."),
        ([1, 2], 'a list.'),
        ({}, 'it is empty.'),
    ],
)
def test_load__says_what_a_file_without_weights_holds(tmp_path, content, held):
    with pytest.raises(ConfigError) as error:
        load(save(tmp_path / 'w.pth', content))
    assert str(error.value).endswith(held)


def test_load__directory(tmp_path):
    with pytest.raises(ConfigError, match='is a directory; give a file in it'):
        load(tmp_path)


def test_sha256_of__literal_and_in_pieces(tmp_path):
    (tmp_path / 'abc').write_bytes(b'abc')
    expected = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    assert sha256_of(tmp_path / 'abc') == expected
    content = bytes(range(256)) * 10_000  # 2.6 MB
    (tmp_path / 'long').write_bytes(content)
    assert sha256_of(tmp_path / 'long') == hashlib.sha256(content).hexdigest()


def test_checkpoint_facts__know_a_download_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    url = 'https://example.org/models/abc.pth?raw=1'
    assert checkpoint_facts(url) == {'checkpoint': 'abc.pth', 'weights': None}
    path = tmp_path / 'checkpoints/abc.pth'
    path.parent.mkdir()
    save(path, WEIGHTS)
    assert hub_path(url) == path
    assert checkpoint_facts(url)['weights'] == digest_of(WEIGHTS)


def test_digest__is_of_the_learned_tensors_in_use(tmp_path):
    """Whatever file holds them, and whatever else it holds."""
    weights = {'backbone.conv.weight': torch.randn(4, 3, 3, 3), 'head.bias': torch.ones(2)}
    expected = digest_of(weights)
    with_optimizer = {'state_dict': weights, 'optimizer': {'state': {0: torch.ones(9)}}, 'meta': {}}
    whole = save(tmp_path / 'epoch_1.pth', with_optimizer)
    save_file(weights, tmp_path / 'w.safetensors')
    last = {k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v
            for k, v in weights.items()}  # fmt: skip
    wrapped = {f'module.{key}': value for key, value in weights.items()}
    counted = {**weights, 'backbone.bn.num_batches_tracked': torch.tensor(7)}
    files = [whole, tmp_path / 'w.safetensors']
    files += [save(tmp_path / f'{n}.pth', it) for n, it in enumerate((last, wrapped, counted))]
    assert {digest_of_file(str(path)) for path in files} == {expected}
    headless = {'backbone.conv.weight': weights['backbone.conv.weight']}
    of_backbone = digest_of_file(str(whole), ['backbone', 'neck'])
    assert of_backbone == digest_of(headless) != expected
    assert digest_of({**weights, 'head.bias': torch.zeros(2)}) != expected
    assert digest_of_file(str(tmp_path / 'missing.pth')) is None


def test_dataset_meta__of_one_data_set_of_several_and_of_none():
    cats, dogs = dict(classes=('cat',)), dict(classes=('dog',))
    assert dataset_meta_of(dict(dataset_meta=cats)) == cats
    assert dataset_meta_of(dict(dataset_meta=[dogs, cats])) == dogs
    for nothing in ({}, dict(dataset_meta=None), dict(dataset_meta=[]), dict(dataset_meta='cat')):
        assert dataset_meta_of(nothing) == {}
