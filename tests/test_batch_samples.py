"""Batches of data samples in both forms: a list, and the dict of MMYOLO's fast data path."""

import pytest
import torch
from detectors import random_batch
from mmdet.models.data_preprocessors import DetDataPreprocessor

from rdimkd_det.bridge import InputBridge
from rdimkd_det.distiller.image_scale import ImageShrinker
from rdimkd_det.samples import any_object, image_sizes, one_per_image

BOXES = torch.tensor([[0, 2, 4, 8, 20, 30], [1, 5, 0, 0, 9, 9], [1, 1, 2, 2, 6, 7]]).float()


def fast(boxes=BOXES, size=(64, 96)) -> dict:
    return {'bboxes_labels': boxes, 'img_metas': [{'batch_input_shape': size}] * 2}


def test_image_sizes__of_both_forms():
    samples = random_batch(size=[(33, 40), (20, 50)])['data_samples']
    assert image_sizes(samples) == [(33, 40), (20, 50)]
    assert image_sizes(samples, scale=2) == [(17, 20), (10, 25)]
    assert image_sizes(fast()) is None


@pytest.mark.parametrize('num_boxes', [0, 2])
def test_any_object__of_both_forms(num_boxes):
    samples = random_batch(num_boxes=num_boxes)['data_samples']
    assert any_object(samples) == any_object(fast(BOXES[:num_boxes])) == (num_boxes > 0)


def test_one_per_image__has_the_boxes_of_its_image():
    inputs, before = torch.zeros(2, 3, 64, 96), BOXES.clone()
    first, second = one_per_image(fast(), inputs)
    assert first.gt_instances.labels.tolist() == [2]
    assert second.gt_instances.labels.tolist() == [5, 1]
    assert second.gt_instances.bboxes.tolist() == [[0, 0, 9, 9], [2, 2, 6, 7]]
    assert first.img_shape == first.batch_input_shape == (64, 96)
    second.gt_instances.bboxes.mul_(2)
    assert torch.equal(BOXES, before)
    samples = random_batch()['data_samples']
    assert one_per_image(samples, inputs) is samples


def test_bridge__every_image_of_a_fast_batch_is_whole():
    student = DetDataPreprocessor(mean=[0.0] * 3, std=[255.0] * 3, bgr_to_rgb=True)
    teacher = DetDataPreprocessor(pad_size_divisor=32, pad_value=7)
    inputs = torch.rand(2, 3, 48, 64)
    found = InputBridge(student, teacher)(inputs, fast(size=(48, 64)))
    assert found.shape == (2, 3, 64, 64) and (found[:, :, 48:] == 7).all()
    torch.testing.assert_close(found[:, :, :48], inputs.flip(1) * 255)


def test_shrinker__boxes_of_a_fast_batch():
    shrink = ImageShrinker(2, DetDataPreprocessor(pad_size_divisor=32))
    inputs, samples = shrink(torch.ones(2, 3, 64, 96), fast())
    assert inputs.shape == (2, 3, 32, 64) and (inputs[..., :48] == 1).all()
    assert samples['bboxes_labels'].tolist()[0] == [0, 2, 2, 4, 10, 15]
    assert samples['img_metas'] == [{'batch_input_shape': (32, 64)}] * 2
