"""The driver's metrics on cases with known answers, and the Content Heatmap against another computation."""

import math

import numpy as np
import pytest
import torch
from driver import metrics

from cgc_kernels import CropFlip

BOX = [2, 1, 6, 5]  # columns 2..5, rows 1..4: 16 of 64 pixels
DEAD = torch.zeros(8, 8)


def spot(*pixels, size=8):
    """A heatmap [size, size] that is 1 at the given (row, column) pixels."""
    heat = torch.zeros(size, size)
    for row, column in pixels:
        heat[row, column] = 1
    return heat


def masks(*images, size=8, tolerance=0.0):
    """The union of each image's list of boxes."""
    boxes = torch.tensor([box for boxes in images for box in boxes], dtype=torch.float32).reshape(-1, 4)
    return metrics.box_masks(boxes, torch.tensor([len(boxes) for boxes in images]), size, tolerance)


def shares(heatmaps, *images, size=8):
    return metrics.content_shares(torch.stack(heatmaps), masks(*images, size=size)).tolist()


# ---- Boxes.


def test_box_masks_exclude_right_and_bottom():
    (mask,) = masks([BOX])
    assert mask.sum() == 16
    assert mask[1, 2]
    assert mask[4, 5]
    assert not mask[5, 5]
    assert not mask[4, 6]


def test_box_at_coordinate_zero_is_a_box():
    (mask,) = masks([[0, 0, 3, 2]])
    assert mask.sum() == 6
    assert mask[0, 0]
    (whole,) = masks([[0, 0, 8, 8]])
    assert whole.all()


def test_union_of_boxes_counts_no_pixel_twice():
    (mask,) = masks([[0, 0, 4, 4], [2, 2, 6, 6]])
    assert mask.sum() == 16 + 16 - 4
    first, none, third = masks([[0, 0, 1, 1]], [], [[1, 1, 2, 2], [3, 3, 4, 4]])
    assert first.sum() == 1
    assert not none.any()
    assert third.sum() == 2
    assert third[1, 1]
    assert third[3, 3]


@pytest.mark.parametrize(
    ("box", "columns"),
    [
        ([1.4, 0, 3.6, 8], [1, 2, 3]),  # centres 1.5, 2.5, 3.5
        ([1.6, 0, 3.4, 8], [2]),
        ([1.5, 0, 3.5, 8], [1, 2]),  # a centre on the left edge is inside, on the right edge outside
        ([2.6, 0, 3.2, 8], [2]),  # holds no centre: the pixel in its middle
        ([7.9, 0, 8.0, 8], [7]),
    ],
)
def test_a_pixel_belongs_to_a_box_if_its_centre_does(box, columns):
    (mask,) = masks([box])
    assert mask.any(0).nonzero().flatten().tolist() == columns


# ---- Content Heatmap.


def test_content_heatmap_is_the_share_in_the_box():
    heatmaps = [spot((1, 2), (0, 0)), spot((4, 5)), spot((5, 5), (4, 6), (4, 5), (1, 1)), 1000 * spot((0, 0))]
    assert shares(heatmaps, *[[BOX]] * 4) == pytest.approx([0.5, 1, 0.25, 0])


def test_content_heatmap_of_overlapping_boxes_is_that_of_their_union():
    heat = torch.ones(8, 8)
    assert shares([heat], [[0, 0, 4, 4], [2, 2, 6, 6]]) == pytest.approx([28 / 64])
    assert shares([spot((3, 3))], [[0, 0, 4, 4], [2, 2, 6, 6]]) == [1]


def test_content_heatmap_of_a_flat_heatmap_is_the_mask_share():
    assert shares([torch.full((8, 8), 3.0)], [BOX]) == pytest.approx([0.25])


def test_dead_heatmaps_and_images_without_a_box_have_no_share():
    dead, boxless, scored = shares([DEAD, torch.ones(8, 8), spot((1, 2))], [BOX], [], [BOX])
    assert math.isnan(dead)
    assert math.isnan(boxless)
    assert scored == 1


def test_content_heatmap_equals_an_independent_computation():
    """100 random cases: masks painted pixel by pixel in numpy, shares summed in float64."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        size = int(rng.integers(5, 40))
        heat = rng.random((size, size)) ** rng.integers(1, 8)
        corners = [sorted(rng.choice(size + 1, 2, replace=False)) for _ in range(2 * rng.integers(1, 4))]
        boxes = [[x[0], y[0], x[1], y[1]] for x, y in zip(corners[::2], corners[1::2], strict=True)]
        inside = 0.0
        for row in range(size):
            for column in range(size):
                if any(left <= column < right and top <= row < bottom for left, top, right, bottom in boxes):
                    inside += heat[row, column]
        (share,) = shares([torch.from_numpy(heat)], [list(map(int, box)) for box in boxes], size=size)
        assert share == pytest.approx(inside / heat.sum(), rel=1e-12)


# ---- The pointing game.


def test_pointing_game_tolerance_is_euclidean():
    """At 64 px the tolerance is 4.29 px: 4 px away hits, 5 misses; (3, 3) away is 4.24 and hits, (4, 3) misses."""
    near = masks([[20, 20, 30, 30]], size=64, tolerance=metrics.POINTING_TOLERANCE * 64)
    distances = {(25, 33): 1, (25, 34): 0, (25, 16): 1, (25, 15): 0, (32, 32): 1, (33, 32): 0, (25, 25): 1}
    for pixel, hit in distances.items():
        assert metrics.pointing_hits(spot(pixel, size=64)[None], near).item() == hit, pixel


def test_pointing_game_allows_15_px_at_224():
    near = masks([[100, 100, 110, 110]], size=224, tolerance=metrics.POINTING_TOLERANCE * 224)
    assert metrics.pointing_hits(spot((105, 124), size=224)[None], near).item() == 1
    assert metrics.pointing_hits(spot((105, 125), size=224)[None], near).item() == 0


def test_pointing_game_takes_the_nearest_of_several_boxes():
    near = masks([[0, 0, 2, 2], [60, 60, 64, 64]], size=64, tolerance=metrics.POINTING_TOLERANCE * 64)
    hits = [metrics.pointing_hits(spot(pixel, size=64)[None], near).item() for pixel in ((0, 0), (63, 63), (32, 32))]
    assert hits == [1, 1, 0]


def test_tied_maxima_share_the_point():
    near = masks([[0, 0, 4, 8]])
    assert metrics.pointing_hits(spot((0, 0), (7, 7))[None], near).item() == 0.5
    assert metrics.pointing_hits(torch.ones(1, 8, 8), near).item() == 0.5
    assert math.isnan(metrics.pointing_hits(DEAD[None], near).item())


def test_mean_of_classes_leaves_out_what_is_unknown():
    values = torch.tensor([1, 1, 0, 0, torch.nan, torch.nan], dtype=torch.float64)
    assert metrics.mean_of_classes(values, torch.tensor([0, 0, 0, 1, 1, 2])) == pytest.approx((2 / 3 + 0) / 2)
    assert math.isnan(metrics.mean_of_classes(values[4:], torch.tensor([1, 2])))


# ---- Predictions.


def test_label_ranks():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 5.0], [5.0, 4.0, 6.0]])
    assert metrics.label_ranks(logits, torch.tensor([0, 1, 1])).tolist() == [0, 1, 2]


def test_label_ranks_break_ties_as_argmax():
    logits = torch.ones(3, 3)
    ranks = metrics.label_ranks(logits, torch.tensor([0, 1, 2]))
    assert ranks.tolist() == [0, 1, 2]
    assert (ranks == 0).tolist() == (logits.argmax(1) == torch.tensor([0, 1, 2])).tolist()


# ---- Sharpness.


def test_fine_keeps_a_constant_and_the_size():
    assert torch.equal(metrics.fine(torch.full((2, 3, 3), 0.5), 8), torch.full((2, 8, 8), 0.5))


def test_effective_area_counts_equal_pixels():
    areas = metrics.effective_areas(torch.stack([spot((0, 0), (3, 3)), torch.ones(8, 8), DEAD])).tolist()
    assert areas[:2] == pytest.approx([2 / 64, 1])
    assert math.isnan(areas[2])


def test_effective_area_of_unequal_masses():
    heat = 3 * spot((0, 0)) + spot((1, 1))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert metrics.effective_areas(heat[None]).item() == pytest.approx(math.exp(entropy) / 64)


def test_sharpen_keeps_dead_maps_dead_and_squares_the_rest():
    heatmaps = torch.stack([spot((0, 0)) + 0.5 * spot((1, 1)), DEAD])
    sharp = metrics.sharpen(4 * heatmaps, 2)
    assert torch.equal(sharp, torch.stack([spot((0, 0)) + 0.25 * spot((1, 1)), DEAD]))


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_match_sharpness_finds_the_power(power):
    heatmaps = torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    area = metrics.effective_areas(metrics.sharpen(heatmaps, power)).mean().item()
    assert metrics.match_sharpness(torch.cat([heatmaps, heatmaps[:1] * 0]), area) == pytest.approx(power, rel=1e-6)


def test_match_sharpness_gives_the_nearer_end_where_nothing_fits():
    heatmaps = spot((0, 0), (1, 1))[None]
    assert metrics.match_sharpness(heatmaps, 0.5) == pytest.approx(1 / 64)
    assert math.isnan(metrics.match_sharpness(DEAD[None], 0.5))
    assert math.isnan(metrics.match_sharpness(heatmaps, math.nan))


# ---- Twins.


def test_consistency_of_an_exact_twin_and_of_a_stranger():
    heatmaps = torch.rand(3, 8, 8)
    crops = CropFlip(*torch.tensor([[1, 0, 2], [2, 0, 1], [5, 8, 6], [4, 8, 7]]), torch.tensor([False, True, True]))
    twins = crops.apply(heatmaps[:, None])[:, 0]
    assert metrics.consistencies(heatmaps, twins, crops).tolist() == pytest.approx([1, 1, 1])
    whole = CropFlip.identity(1, 8)
    assert metrics.consistencies(spot((0, 0))[None], spot((1, 1))[None], whole).item() == pytest.approx(0, abs=1e-9)
    half = metrics.consistencies(spot((0, 0))[None], spot((0, 0), (1, 1))[None], whole)
    assert half.item() == pytest.approx(1 / 2**0.5)
    assert math.isnan(metrics.consistencies(DEAD[None], spot((0, 0))[None], whole).item())


def test_twin_retrieval_finds_own_originals():
    heatmaps = torch.stack([spot((0, 0)), spot((3, 3)), spot((6, 6)), DEAD])
    whole = CropFlip.identity(4, 8)
    assert metrics.twins_found(heatmaps, heatmaps, whole).tolist() == [True, True, True, False]
    swapped = metrics.twins_found(heatmaps, heatmaps[[1, 0, 2, 3]], whole)
    assert swapped.tolist() == [False, False, True, False]


def test_twin_retrieval_searches_within_its_batch_only():
    """The 51st image has the first one's heatmap; only its batch of one is searched, so it finds itself."""
    heatmaps = torch.rand(51, 8, 8)
    heatmaps[50] = heatmaps[0]
    assert metrics.twins_found(heatmaps, heatmaps, CropFlip.identity(51, 8)).all()
