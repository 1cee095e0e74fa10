"""Scale of a teacher's input, and its maps resized to the student's strides."""

from fractions import Fraction

import pytest
import torch

from rdimkd_det import ConfigError
from rdimkd_det.features import Level
from rdimkd_det.teacher.fan_out import (
    choose_scale,
    describe_plan,
    in_student_pixels,
    plan_levels,
    planned_levels,
    resize_levels,
)


def levels(*strides):
    return [Level(index, stride, 4) for index, stride in enumerate(strides)]


@pytest.mark.parametrize(
    'own, student, scale',
    [
        ((16,), (8, 16, 32), 1),
        ((14,), (8, 16, 32), Fraction(7, 8)),
        ((7, 14, 28), (8, 16, 32), Fraction(7, 8)),
        ((12,), (8, 16, 32), Fraction(3, 4)),
        ((14, 16), (8, 16, 32), 1),  # one fits
        ((4,), (8, 16, 32), 1),  # too far: that is for fan-out
        ((14,), (), 1),
    ],
)
def test_scale__brings_the_finest_stride_to_the_students(own, student, scale):
    assert choose_scale(levels(*own), student) == scale


def test_strides__count_in_the_students_pixels():
    found = in_student_pixels(levels(14, 28), Fraction(7, 8))
    assert [(it.index, it.stride) for it in found] == [(0, 16), (1, 32)]
    message = r'one of 17\.7778 of .* 0\.888889 for 18 or 0\.842105 for 19'
    with pytest.raises(ConfigError, match=message):
        in_student_pixels(levels(16), Fraction(9, 10))
    with pytest.raises(ConfigError, match=r'e\.g\. 16 for 1 or 8 for 2'):
        in_student_pixels(levels(16), Fraction(10**9))


def test_plan__every_stride_of_the_student_or_those_that_are_named():
    plan = plan_levels(levels(8, 16), None, [4, 8, 16, 32, 64])
    assert [(step.level.stride, step.stride) for step in plan] == [
        (8, 4), (8, 8), (16, 16), (16, 32), (16, 64)]  # fmt: skip
    assert [(it.index, it.stride) for it in planned_levels(plan)] == [
        (0, 4), (1, 8), (2, 16), (3, 32), (4, 64)]  # fmt: skip
    plan = plan_levels(levels(8, 32), {16: 'up', 32: 'same', 64: 'down'}, [8, 16, 32, 64])
    assert describe_plan(plan) == '16 up from 32, 32 as it is, 64 down from 32'


@pytest.mark.parametrize(
    'ways, message',
    [
        ({4: 'up'}, r'levels has the stride 4, which the student has not; it has \[8, 16, 32\]'),
        ({8: 'down'}, r"levels has 8: 'down', and the teacher's strides are \[16\]"),
        ({8: 'same'}, r"'same' this one"),
    ],
)
def test_plan__mistakes(ways, message):
    with pytest.raises(ConfigError, match=message):
        plan_levels(levels(16), ways, [8, 16, 32])


def test_resize__down_averages_and_up_is_bilinear():
    """Of 5x7 positions at stride 16: an image of at most 80x112 pixels."""
    maps = torch.randn(2, 4, 5, 7)
    plan = plan_levels(levels(16), None, [8, 16, 32])
    up, same, down = resize_levels([maps], plan)
    assert same is maps
    assert up.shape[2:] == (10, 14) and down.shape[2:] == (3, 4)
    torch.testing.assert_close(down[:, :, 0, 1], maps[:, :, :2, 2:4].mean((2, 3)))
    torch.testing.assert_close(down[:, :, 2, 3], maps[:, :, 4, 6])  # the rest, not zeros
    # A quarter of a position beyond the centre of the first, in both directions.
    expected = (
        9 * maps[..., 0, 0] + 3 * (maps[..., 0, 1] + maps[..., 1, 0]) + maps[..., 1, 1]
    ) / 16
    torch.testing.assert_close(up[:, :, 1, 1], expected)


def test_resize__fractions_keep_positions_in_place():
    """A ramp over the image, at strides 14, 8 and 16, has everywhere the value of its pixel."""
    centres = 14 * torch.arange(40) + 6.5
    maps = centres.expand(1, 1, 40, 40)
    for wanted in (8, 16):
        [found] = resize_levels([maps], plan_levels(levels(14), None, [wanted]))
        inner = slice(2, 40 * 14 // wanted - 2)
        centre = wanted * torch.arange(40 * 14 // wanted) + wanted / 2 - 0.5
        torch.testing.assert_close(found[0, 0, 3, inner], centre[inner], atol=0.3, rtol=0)
