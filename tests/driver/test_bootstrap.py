"""Intervals of differences: of images, of objects with several images, of two models' answers."""

import pytest
import torch
from driver import bootstrap

from tests.driver.cases import answers


def test_a_difference_that_is_everywhere_the_same_has_no_spread():
    assert bootstrap.paired(torch.full((10,), 3.0), torch.arange(10)) == pytest.approx((3, 3, 3))


def test_interval_of_independent_images_is_the_normal_one():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 1
    mean, low, high = bootstrap.paired(values, torch.arange(400))
    assert mean == pytest.approx(values.mean().item())
    half = 1.96 * values.std().item() / 20
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.02)
    assert bootstrap.paired(values, torch.arange(400)) == (mean, low, high)


def test_images_of_one_object_are_drawn_together():
    """Every image four times over says no more than once."""
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    once = bootstrap.paired(values, torch.arange(100))
    copies = bootstrap.paired(values.repeat(4), torch.arange(100).repeat(4))
    alone = bootstrap.paired(values.repeat(4), torch.arange(400))
    assert copies == pytest.approx(once)
    assert alone.high - alone.low < 0.6 * (once.high - once.low)


def test_objects_weigh_by_their_images():
    values, groups = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([7, 7, 7, 2])
    assert bootstrap.paired(values, groups) == pytest.approx((0.75, 0, 1))


def test_a_single_object_has_no_interval():
    assert bootstrap.paired(torch.tensor([1.0, 0.0]), torch.tensor([5, 5])) is None
    assert bootstrap.accuracy_difference([]) is None


def test_accuracy_difference_is_of_images_that_both_could_read():
    maps = torch.ones(4, 4, 4)
    first = answers(maps, ranks=torch.tensor([0, 0, 0, 3]), corrupt=torch.tensor([False, False, True, False]))
    second = answers(maps, ranks=torch.tensor([0, 2, 2, 1]), corrupt=torch.tensor([False, False, False, False]))
    difference = bootstrap.accuracy_difference([(first, second)])
    assert difference.mean == pytest.approx(100 / 3)
    assert difference.low == pytest.approx(0)
    assert bootstrap.accuracy_difference([(first, second), (second, first)]).mean == pytest.approx(0)
