import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer

from rdimkd_det import DistillHook, RdimKDDistiller
from rdimkd_det.commands.hook_options import check_hook_options, distill_hooks
from rdimkd_det.files.configs import open_config
from rdimkd_det.options import check_options


def test_config_prefix__a_recipe_as_base(tmp_path):
    """Its types are looked up in MMDetection's registries, without a warning."""
    (tmp_path / 'mine.py').write_text("_base_ = ['rdimkd_det::rdimkd_fcos_r50_r18.py']\n")
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert cfg.model.type == 'RdimKDDistiller' and cfg.model['_scope_'] == 'mmdet'
    check_options('model', cfg.model, RdimKDDistiller)
    check_hook_options(cfg)
    assert [type(hook) for hook in distill_hooks(cfg)] == [DistillHook]
    plain = open_config('rdimkd_det::rdimkd_fcos_r50_r18.py')
    assert plain.model.losses == cfg.model.losses


def test_config_prefix__no_such_config():
    with pytest.raises(FileNotFoundError, match=r'configs/none\.py'):
        open_config('rdimkd_det::none.py')


def test_checkpoint_types__mmengine_run(tmp_path):
    history = HistoryBuffer([0.5, 0.25], [1, 1])
    hub = {
        'log_scalars': {'train/loss': history},
        'runtime_info': {'iter': 3, 'numpy': np.float64(2.5), 'seed': np.int64(7)},
        'arrays': [np.arange(6, dtype=kind).reshape(2, 3) for kind in ('f4', 'f8', 'i4', 'i8')],
    }
    torch.save({'message_hub': hub, 'weights': torch.ones(2)}, tmp_path / 'epoch_1.pth')
    loaded = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)['message_hub']
    buffer = loaded['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.current() == 0.25 and buffer.mean() == 0.375 and buffer.min() == 0.25
    assert loaded['runtime_info'] == hub['runtime_info']
    assert all(np.array_equal(*pair) for pair in zip(loaded['arrays'], hub['arrays']))


class Asks:
    """Pickles as a call of ``getattr``, through which a pickle could reach any function."""

    def __init__(self, owner, name):
        self.call = getattr, (owner, name)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'owner, name', [(HistoryBuffer, '__init__'), (HistoryBuffer, '__class__'), (np.ndarray, 'min')]
)
def test_checkpoint_types__no_other_attribute(tmp_path, owner, name):
    torch.save({'x': Asks(owner, name)}, tmp_path / 'w.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'w.pth', weights_only=True)


def test_checkpoint_types__getattr_itself_stays():
    assert getattr is __builtins__['getattr']
    assert ConfigDict(a=1).a == 1


def distilled():
    student = {'type': 'FCOS', 'backbone': {'type': 'ResNet', 'init_cfg': None}}
    return ConfigDict(type='RdimKDDistiller', student=student, teacher={'config': 'x'})


def test_student_in_config__of_a_distilled_model():
    config = distilled()
    assert config.backbone.type == 'ResNet'
    assert config['backbone'] is config.student.backbone
    config.backbone.init_cfg = {'type': 'Pretrained'}
    assert config.student.backbone.init_cfg.type == 'Pretrained'
    assert config.type == 'RdimKDDistiller'


def test_student_in_config__of_a_type_with_a_scope():
    assert ConfigDict(distilled(), type='mmdet.RdimKDDistiller').backbone.type == 'ResNet'


def test_student_in_config__only_what_the_student_has():
    with pytest.raises(AttributeError, match='neck'):
        _ = distilled().neck
    with pytest.raises(KeyError, match='neck'):
        _ = distilled()['neck']
    with pytest.raises(AttributeError, match='backbone'):
        _ = ConfigDict(type='RdimKDDistiller').backbone


def test_student_in_config__keys_do_not_change():
    config = distilled()
    assert config.backbone
    assert set(config) == {'type', 'student', 'teacher'}
    assert 'backbone' not in config and config.get('backbone') is None
    assert copy.deepcopy(config).backbone == config.backbone


def test_student_in_config__not_in_other_configs():
    other = ConfigDict(type='Wrapper', student={'backbone': {'type': 'ResNet'}})
    with pytest.raises(AttributeError, match='backbone'):
        _ = other.backbone
