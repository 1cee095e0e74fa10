"""Config options on the command line."""

import argparse

import pytest
from mmengine.config import Config, DictAction

from rdimkd_det.commands.cfg_options import OptionsAction
from rdimkd_det.commands.launch import apply_common_arguments


@pytest.mark.parametrize(
    'typed, value',
    [
        ('data/my data/', 'data/my data/'),
        ('"data/my  data (old)/"', 'data/my  data (old)/'),
        (' 0.5 ', 0.5),
        ('1e-3', 0.001),
        ('None', None),
        ('true', True),
        ('1 000', '1 000'),
        ('1,2, 3', [1, 2, 3]),
        ('[a, b]', ['a', 'b']),
        ("['red', 'light green' , b]", ['red', 'light green', 'b']),
        ('( big ship, [1, ( x y ,2)] )', ('big ship', [1, ('x y', 2)])),
        ('[]', []),
        ("('ship',)", ('ship',)),
    ],
)
def test_options__spaces_inside_of_a_value_are_kept(typed, value):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction)
    options = parser.parse_args(['--cfg-options', 'a.b=x=y', f'c={typed}']).cfg_options
    assert options == {'a.b': 'x=y', 'c': value}
    if ' ' not in typed:
        assert value == DictAction._parse_iterable(typed)


@pytest.mark.parametrize(
    'typed, told',
    [
        (['train_cfg.max_epochs', '2'], "takes KEY=VALUE, without spaces around '='"),
        (['train_cfg.max_epochs =2'], "got 'train_cfg.max_epochs =2'; lists as"),
        (['=2'], "got '=2'"),
        (['a=a],['], 'a=a],[: maximum recursion depth exceeded'),
        (['a=[1,2'], 'a=[1,2: Imbalanced brackets exist in [1,2; write lists as'),
    ],
)
def test_mistake__option_without_a_value(refused, files, typed, told):
    line = refused('train.py', files / 'plain.py', '--cfg-options', *typed)
    assert line.startswith('train.py: --cfg-options ') and told in line


def test_options__a_path_with_a_space_is_the_one_that_was_typed(refused, files):
    root = 'train_dataloader.dataset.data_root=no such data/'
    line = refused('train.py', files / 'plain.py', '--cfg-options', root)
    assert line.startswith('train.py: train data: no such data/annotations.json does not exist.')


def test_options__work_dir_may_look_like_a_number():
    args = argparse.Namespace(local_rank=0, work_dir=None, launcher='none', config='c.py')
    args.cfg_options = {'work_dir': 2026}
    cfg = Config()
    apply_common_arguments(cfg, args)
    assert cfg.work_dir == '2026'
