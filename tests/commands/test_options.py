"""Config options on the command line."""

import argparse

import pytest
from mmengine.config import DictAction

from rdimkd_det.commands.cfg_options import OptionsAction


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


def test_options__a_path_with_a_space_is_the_one_that_was_typed(refused, files):
    root = 'train_dataloader.dataset.data_root=no such data/'
    line = refused('train.py', files / 'plain.py', '--cfg-options', root)
    assert line.startswith('train.py: train data: no such data/annotations.json does not exist.')
