"""Images without labels in a batch: distillation losses of all, own losses of the others."""

import copy
from unittest import mock

import pytest
import torch
from detectors import random_batch, small_config, teacher_files
from mmdet.registry import MODELS
from mmengine.model import MMDistributedDataParallel
from mmengine.structures import InstanceData
from processes import run_distributed
from runs import distilled, fcos
from torch import nn
from unlabelled import teacher_of

from rdimkd_det import ConfigError, RdimKDDistiller

LABELLED = [1, 3]  # of the four images in a batch
RANDOM = dict(type='RandomProjection', dim=4)
LEVELS = [f'loss_rdimkd_neck_s{stride}' for stride in (8, 16, 32)]
OWN = ['loss_cls', 'loss_bbox', 'loss_centerness']


def build(files, student=None, labels=True, **loss) -> nn.Module:
    """Build a student whose BatchNorm is in eval, so that the images do not depend on others."""
    torch.manual_seed(0)
    student = student or fcos(norm_eval=True)
    model = distilled(student, teacher_of(files), projection=RANDOM, **loss)
    return MODELS.build({**model, 'labels': labels}).train()


def batch(model: nn.Module, labelled=LABELLED, num: int = 4) -> dict:
    """Return a preprocessed batch of which some images have no labels."""
    samples = random_batch(size=[(96, 128), (64, 100), (90, 128), (96, 80)][:num], num_classes=3)
    for index, sample in enumerate(samples['data_samples']):
        if index not in labelled:
            sample.set_metainfo({'labelled': False})
            del sample.gt_instances
    return model.data_preprocessor(samples, True)


def losses(model: nn.Module, data: dict, keep=None) -> dict[str, torch.Tensor]:
    """Return the losses of a batch, or of some of its images in their order."""
    keep = range(len(data['inputs'])) if keep is None else keep
    data = {
        'inputs': data['inputs'][list(keep)],
        'data_samples': [copy.deepcopy(data['data_samples'][index]) for index in keep],
    }
    found = model(**data, mode='loss')
    return {name: model.parse_losses({name: value})[1][name] for name, value in found.items()}


def plain_losses(model: nn.Module, data: dict, keep=LABELLED) -> dict[str, torch.Tensor]:
    """Return the losses of the student alone, of the images with labels alone."""
    samples = [copy.deepcopy(data['data_samples'][index]) for index in keep]
    found = super(RdimKDDistiller, model).loss(data['inputs'][list(keep)], samples)
    return {name: model.parse_losses({name: value})[1][name] for name, value in found.items()}


def test_loss__own_of_the_labelled_images_and_distillation_of_all(files):
    model = build(files)
    data = batch(model)
    found = losses(model, data)
    assert list(found) == [*OWN, *LEVELS]
    for name, value in plain_losses(model, data).items():
        assert found[name] == value, name
    with mock.patch.object(model.bbox_head, 'loss', return_value={}):
        for sample in data['data_samples']:
            sample.set_metainfo({'labelled': True})
            sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4))
        as_labelled = losses(model, data)
    for name in LEVELS:  # 'standardize' takes its statistics from the whole batch
        torch.testing.assert_close(found[name], as_labelled[name])


@pytest.mark.parametrize('family', ['faster_rcnn', 'detr'])
def test_loss__other_families(tmp_path, family):
    if family == 'detr':
        config = small_config('detr/detr_r50_8xb2-150e_coco.py', depth=18, channels=256)
        config.model.backbone.out_indices = (3,)
        config.model.neck.update(in_channels=[64])
    else:
        config = small_config('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', depth=18)
    files = dict(zip(('config', 'checkpoint'), teacher_files(tmp_path, copy.deepcopy(config))))
    model = MODELS.build(distilled(config.model, files, projection=RANDOM)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    data = batch(model)
    torch.manual_seed(1)  # two-stage detectors sample proposals
    found = losses(model, data)
    torch.manual_seed(1)
    for name, value in plain_losses(model, data).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert any(name.startswith('loss_rdimkd') for name in found)


def test_loss__of_images_without_labels_alone(files):
    model = build(files)
    data = batch(model, labelled=[])
    with mock.patch.object(model.bbox_head, 'forward', side_effect=AssertionError('no head')):
        found = losses(model, data)
    assert list(found) == LEVELS
    sum(found.values()).backward()
    without = {name.split('.')[0] for name, it in model.named_parameters() if it.grad is None}
    assert without == {'bbox_head'}


def test_loss__switched_off_is_that_of_the_labelled_images(files):
    """Bit for bit, and the images without labels cost nothing."""
    for options in (dict(loss_weight=0.0), {}):
        model = build(files, fcos(), **options)  # BatchNorm would show other images
        model.distill.set_factor(0.0)
        data = batch(model)
        found = losses(model, data)
        plain = plain_losses(model, data)
        assert [name for name in found if found[name] != 0] == list(plain) == OWN
        assert all(found[name] == plain[name] for name in plain)
        nothing = losses(model, batch(model, labelled=[]))
        total = sum(nothing.values())
        total.backward()
        assert total == 0 and not any(
            it.grad.any() for it in model.parameters() if it.requires_grad
        )


def test_loss__missing_labels_are_an_error_where_nothing_says_so(files):
    model = build(files)
    data = batch(model)
    data['data_samples'][2].set_metainfo({'labelled': True})
    with pytest.raises(ConfigError, match=r'image 2\.png has no labels and does not say so; put'):
        losses(model, data)
    data['data_samples'][2].gt_instances = InstanceData()
    with pytest.raises(ConfigError, match=r'image 2\.png has no labels'):
        losses(model, data)


def test_loss__a_student_whose_loss_takes_no_extracted_features(files):
    model = build(files)
    with (
        mock.patch.object(type(model).__bases__[1], 'loss', lambda *_: {}),
        pytest.raises(ConfigError, match=r'FCOS: its loss.+ does not call extract_feat'),
    ):
        losses(model, batch(model))
    assert 'extract_feat' not in vars(model)


def test_auto__waits_for_a_batch_with_labels(files):
    model = build(files, loss_weight='auto')
    loss = model.distill.losses['neck']
    losses(model, batch(model, labelled=[]))
    assert loss.num_balances == 0
    losses(model, batch(model))
    assert loss.num_balances == 1 and loss.auto_weight > 0


class TestWithoutAnyLabels:
    """``labels=False``: a training before labels exist."""

    def test_head__is_not_trained(self, files):
        model = build(files, labels=False)
        trained = {name.split('.')[0] for name, it in model.named_parameters() if it.requires_grad}
        assert trained == {'backbone', 'neck', 'distill'}
        found = losses(model, batch(model, labelled=range(4)))  # labels that are there do not count
        assert list(found) == LEVELS
        sum(found.values()).backward()
        assert all(it.grad is not None for it in model.parameters() if it.requires_grad)

    def test_levels__without_a_weight_are_not_trained(self, files):
        model = build(files, labels=False, loss_weight={8: 1.0, 16: 0.0, 32: 0.0})
        trained = [name for name, it in model.named_parameters() if it.requires_grad]
        assert [name for name in trained if 'fpn_convs' in name] == [
            'neck.fpn_convs.0.conv.weight', 'neck.fpn_convs.0.conv.bias'
        ]  # fmt: skip

    def test_modes__are_left_as_they_are(self, files):
        student = MODELS.build(fcos()).train()
        assert build(files, student, labels=False).backbone.layer1.training

    def test_weight_auto__is_one(self, files):
        models = [build(files, labels=False, loss_weight=weight) for weight in ('auto', 1.0)]
        of_auto, of_one = (losses(model, batch(model)) for model in models)
        assert of_auto == of_one


# Ranks with different shares

SHARES = {
    'both_kinds_and_one': ([0, 1, 2], [3]),
    'one_kind_each': ([1, 3], [0, 2]),
    'none_with_labels': ([0], [2]),
}


def gradients(network: nn.Module, model: nn.Module, data: dict) -> dict:
    for _ in range(2):  # DDP would fail in the second step if the first left parameters unused
        model.zero_grad()
        model.parse_losses(network(**copy.deepcopy(data), mode='loss'))[0].backward()
    return {name: it.grad for name, it in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize('shares', SHARES.values(), ids=SHARES)
@pytest.mark.parametrize('labels', [True, False])
def test_ranks__with_different_shares(files, tmp_path, shares, labels):
    model = build(files, labels=labels)
    data = batch(model)

    def on_rank(rank: int) -> tuple:
        own = {
            'inputs': data['inputs'][list(shares[rank])],
            'data_samples': [data['data_samples'][index] for index in shares[rank]],
        }
        twin = copy.deepcopy(model)
        network = MMDistributedDataParallel(
            twin, device_ids=None, broadcast_buffers=False, find_unused_parameters=False
        )
        levels = losses(twin, own)
        return gradients(network, twin, own), {name: levels[name].item() for name in LEVELS}

    (first, of_levels), (second, _) = run_distributed(on_rank, tmp_path)
    for name, gradient in first.items():
        if labels or not name.startswith('bbox_head'):
            assert gradient is not None, name
        if gradient is not None:
            assert torch.equal(gradient, second[name]), name
    together = losses(model, data, keep=[index for share in shares for index in share])
    for name in LEVELS:
        assert together[name].item() == pytest.approx(of_levels[name], rel=1e-4), name
    has_labels = labels and any(index in LABELLED for share in shares for index in share)
    assert has_labels == any(
        gradient is not None and bool(gradient.any())
        for name, gradient in first.items()
        if name.startswith('bbox_head')
    )
