"""Top-level keys of configs: misspelled keys, users' own variables, and keys needed together."""

import inspect
import re

import mmengine.runner.runner
import pytest
from detectors import CONFIGS
from mmengine.config import Config
from runs import REPOSITORY

from rdimkd_det import ConfigError
from rdimkd_det.commands.checks import check_sections
from rdimkd_det.commands.top_level import READ, check_loops_whole, check_top_level, meant_key


@pytest.mark.parametrize(
    'name, meant',
    [
        ('param_schedular', 'param_scheduler'),
        ('load_form', 'load_from'),
        ('default_hook', 'default_hooks'),
        ('env_cgf', 'env_cfg'),
        ('optim_wraper', 'optim_wrapper'),
        ('visualiser', 'visualizer'),
        ('resum', 'resume'),
        ('model_wraper_cfg', 'model_wrapper_cfg'),
    ],
)
def test_misspelled_key__is_refused(name, meant):
    with pytest.raises(ConfigError, match=rf"unknown key '{name}'; did you mean '{meant}'\?"):
        check_top_level(Config({name: None}))


@pytest.mark.parametrize(
    'name',
    ['data_root', 'dataset_type', 'img_scales', 'norm_cfg', 'conv_cfg', 'train_dataset', 'base_lr']
    + ['train_pipeline', 'val_evaluator_abs', 'my_train_cfg', 'train_cfg2', 'max_epoch'],
)
def test_own_variable__passes(name):
    check_top_level(Config({name: None}))


def test_names_of_all_configs__pass():
    """Covers mmdet's and this project's own config files."""
    files = [*CONFIGS.rglob('*.py'), *(REPOSITORY / 'configs').rglob('*.py')]
    names = {
        name for file in files for name in re.findall(r'^(\w+) *=', file.read_text(), re.MULTILINE)
    }
    assert len(names) > 200 and 'val_evaluator_abs' in names
    assert {name: meant for name in names if (meant := meant_key(name))} == {}


def test_known_keys__are_those_that_the_runner_looks_up():
    source = inspect.getsource(mmengine.runner.runner)
    looked_up = re.findall(r"self\.cfg\.get\(\s*'(\w+)'", source)
    assert 'sync_bn' in looked_up and READ.issuperset(looked_up)


@pytest.mark.parametrize(
    'given, missing',
    [
        (('train_dataloader', 'train_cfg'), 'optim_wrapper'),
        (('val_cfg',), 'val_dataloader and no val_evaluator'),
    ],
)
def test_loop__with_a_part_missing(given, missing):
    with pytest.raises(ConfigError, match=f'are needed together; it has no {missing}'):
        check_loops_whole(Config({name: {'batch_size': 2} for name in given}))


def test_loop__misspelled_option():
    loop = dict(type='EpochBasedTrainLoop', max_epoch=1)
    with pytest.raises(ConfigError, match="'max_epoch'; did you mean 'max_epochs'"):
        check_top_level(Config(dict(train_dataloader={}, optim_wrapper={}, train_cfg=loop)))


@pytest.mark.parametrize(
    'options, told',
    [
        (dict(batchsize=2), "keyword argument 'batchsize'; did you mean 'batch_size'?"),
        (dict(batch_size=0), 'batch_size should be a positive integer'),
        (dict(num_workers=-1), 'num_workers option should be non-negative'),
        (dict(num_workers=0, persistent_workers=True), 'persistent_workers option needs'),
    ],
)
def test_data_loader__option_that_pytorch_refuses(options, told):
    with pytest.raises(ConfigError, match=f'^val_dataloader: .*{re.escape(told)}'):
        check_sections(Config(dict(val_dataloader=dict(sampler=dict(type='X'), **options))))
