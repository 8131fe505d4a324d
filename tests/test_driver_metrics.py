"""The driver's metrics on cases whose answers are known by hand."""

import math

import pytest
import torch
from driver import metrics

from cgc_kernels import CropFlip


def spot(*pixels, size=8):
    """A heatmap [size, size] that is 1 at the given (row, column) pixels."""
    heat = torch.zeros(size, size)
    for row, column in pixels:
        heat[row, column] = 1
    return heat


BOX = torch.tensor([[2, 1, 6, 5]])  # columns 2..5, rows 1..4: 16 of 64 pixels
DEAD = torch.zeros(8, 8)


def test_box_masks_exclude_right_and_bottom():
    mask = metrics.box_masks(BOX, 8)[0]
    assert mask.sum() == 16
    assert mask[1, 2]
    assert mask[4, 5]
    assert not mask[5, 5]
    assert not mask[4, 6]


def test_fine_keeps_a_constant_and_the_size():
    assert torch.equal(metrics.fine(torch.full((2, 3, 3), 0.5), 8), torch.full((2, 8, 8), 0.5))


def test_accuracy():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [1.0, 2.0]])
    assert metrics.accuracy(logits, torch.tensor([0, 1, 1, 1])) == 75


def test_content_heatmap_is_the_mean_share_in_the_box():
    heatmaps = torch.stack([spot((1, 2), (0, 0)), spot((4, 5)), spot((5, 5), (4, 6), (4, 5), (1, 1))])
    assert metrics.content_heatmap(heatmaps, BOX.expand(3, 4)) == pytest.approx(100 * (0.5 + 1 + 0.25) / 3)


def test_content_heatmap_weighs_by_mass_not_by_image():
    heatmaps = torch.stack([1000 * spot((1, 2)), 1e-6 * spot((0, 0))])
    assert metrics.content_heatmap(heatmaps, BOX.expand(2, 4)) == pytest.approx(50)


def test_dead_heatmaps_are_counted_and_not_scored():
    heatmaps, boxes = torch.stack([spot((1, 2)), DEAD]), BOX.expand(2, 4)
    labels = torch.tensor([0, 0])
    whole = CropFlip.identity(2, 8)
    assert metrics.dead(heatmaps) == 50
    assert metrics.content_heatmap(heatmaps, boxes) == 100
    assert metrics.effective_area(heatmaps) == pytest.approx(100 / 64)
    assert metrics.pointing_game(heatmaps, boxes, labels) == 100
    assert metrics.consistency(heatmaps, heatmaps, whole) == pytest.approx(100)
    assert metrics.twin_retrieval(heatmaps, heatmaps, whole) == 50


def test_all_dead_gives_nan_not_a_score():
    heatmaps = DEAD[None]
    assert metrics.dead(heatmaps) == 100
    assert math.isnan(metrics.content_heatmap(heatmaps, BOX))
    assert math.isnan(metrics.effective_area(heatmaps))
    assert math.isnan(metrics.pointing_game(heatmaps, BOX, torch.tensor([0])))
    assert math.isnan(metrics.match_sharpness(torch.rand(1, 8, 8), math.nan))


def test_flat_content_heatmap_is_what_a_flat_heatmap_scores():
    boxes = torch.tensor([[2, 1, 6, 5], [0, 0, 8, 8]])
    assert metrics.flat_content_heatmap(boxes, 8) == 62.5
    assert metrics.content_heatmap(torch.full((2, 8, 8), 3.0), boxes) == pytest.approx(62.5)


def test_effective_area_counts_equal_pixels():
    heatmaps = torch.stack([spot((0, 0), (3, 3)), torch.ones(8, 8)])
    assert metrics.effective_area(heatmaps[:1]) == pytest.approx(100 * 2 / 64)
    assert metrics.effective_area(heatmaps) == pytest.approx(100 * (2 / 64 + 1) / 2)


def test_effective_area_of_unequal_masses():
    heat = 3 * spot((0, 0)) + spot((1, 1))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert metrics.effective_area(heat[None]) == pytest.approx(100 * math.exp(entropy) / 64)


def test_pointing_game_tolerance_is_euclidean():
    """At 64 px the tolerance is 4.29 px: 4 px away hits, 5 misses; (3, 3) away is 4.24 and hits, (4, 3) misses."""
    box = torch.tensor([[20, 20, 30, 30]])
    distances = {(25, 33): 100, (25, 34): 0, (25, 16): 100, (25, 15): 0, (32, 32): 100, (33, 32): 0, (25, 25): 100}
    for pixel, score in distances.items():
        assert metrics.pointing_game(spot(pixel, size=64)[None], box, torch.tensor([0])) == score, pixel


def test_pointing_game_is_the_mean_of_the_classes():
    hit, miss = spot((25, 25), size=64), spot((0, 0), size=64)
    box = torch.tensor([[20, 20, 30, 30]]).expand(4, 4)
    heatmaps = torch.stack([hit, hit, miss, miss])
    assert metrics.pointing_game(heatmaps, box, torch.tensor([0, 0, 0, 1])) == pytest.approx(100 * (2 / 3 + 0) / 2)


def test_consistency_of_an_exact_twin_and_of_a_stranger():
    heatmaps = torch.rand(3, 8, 8)
    crops = CropFlip(*torch.tensor([[1, 0, 2], [2, 0, 1], [5, 8, 6], [4, 8, 7]]), torch.tensor([False, True, True]))
    twins = metrics.apply_crops(heatmaps[:, None], crops)[:, 0]
    assert metrics.consistency(heatmaps, twins, crops) == pytest.approx(100)
    whole = CropFlip.identity(1, 8)
    assert metrics.consistency(spot((0, 0))[None], spot((1, 1))[None], whole) == pytest.approx(0, abs=1e-9)
    assert metrics.consistency(spot((0, 0))[None], spot((0, 0), (1, 1))[None], whole) == pytest.approx(100 / 2**0.5)


def test_twin_retrieval_counts_own_originals():
    heatmaps = torch.stack([spot((0, 0)), spot((3, 3)), spot((6, 6)), spot((7, 0))])
    whole = CropFlip.identity(4, 8)
    assert metrics.twin_retrieval(heatmaps, heatmaps, whole) == 100
    assert metrics.twin_retrieval(heatmaps, heatmaps[[1, 0, 2, 3]], whole) == 50


def test_twin_retrieval_searches_within_its_batch_only():
    """The 51st image has the first one's heatmap; only its batch of one is searched, so it finds itself."""
    heatmaps = torch.rand(51, 8, 8)
    heatmaps[50] = heatmaps[0]
    assert metrics.twin_retrieval(heatmaps, heatmaps, CropFlip.identity(51, 8)) == 100


def test_sharpen_keeps_dead_maps_dead_and_squares_the_rest():
    heatmaps = torch.stack([spot((0, 0)) + 0.5 * spot((1, 1)), DEAD])
    sharp = metrics.sharpen(4 * heatmaps, 2)
    assert torch.equal(sharp, torch.stack([spot((0, 0)) + 0.25 * spot((1, 1)), DEAD]))


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_match_sharpness_finds_the_power(power):
    heatmaps = torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    area = metrics.effective_area(metrics.sharpen(heatmaps, power))
    assert metrics.match_sharpness(heatmaps, area) == pytest.approx(power, rel=1e-6)


def test_match_sharpness_gives_the_nearer_end_where_nothing_fits():
    heatmaps = spot((0, 0), (1, 1))[None]
    assert metrics.match_sharpness(heatmaps, 50.0) == pytest.approx(1 / 64)
