"""Where the heat is, on cases with known answers, and the Content Heatmap against another computation."""

import math

import numpy as np
import pytest
import torch

from cgc_kernels import metrics

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
    counts = torch.tensor([len(boxes) for boxes in images])
    return metrics.box_masks(boxes, size, counts=counts, tolerance=tolerance)


def shares(heatmaps, *images, size=8):
    return metrics.content_heatmap(torch.stack(heatmaps), masks(*images, size=size)).tolist()


# ---- Boxes


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


# ---- Content Heatmap


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


# ---- The pointing game


def test_pointing_game_tolerance_is_euclidean():
    """At 64 px the tolerance is 4.29 px: 4 px away hits, 5 misses; (3, 3) away is 4.24 and hits, (4, 3) misses."""
    near = masks([[20, 20, 30, 30]], size=64, tolerance=metrics.POINTING_TOLERANCE * 64)
    distances = {(25, 33): 1, (25, 34): 0, (25, 16): 1, (25, 15): 0, (32, 32): 1, (33, 32): 0, (25, 25): 1}
    for pixel, hit in distances.items():
        assert metrics.pointing_game(spot(pixel, size=64)[None], near).item() == hit, pixel


def test_pointing_game_allows_15_px_at_224():
    near = masks([[100, 100, 110, 110]], size=224, tolerance=metrics.POINTING_TOLERANCE * 224)
    assert metrics.pointing_game(spot((105, 124), size=224)[None], near).item() == 1
    assert metrics.pointing_game(spot((105, 125), size=224)[None], near).item() == 0


def test_pointing_game_takes_the_nearest_of_several_boxes():
    near = masks([[0, 0, 2, 2], [60, 60, 64, 64]], size=64, tolerance=metrics.POINTING_TOLERANCE * 64)
    hits = [metrics.pointing_game(spot(pixel, size=64)[None], near).item() for pixel in ((0, 0), (63, 63), (32, 32))]
    assert hits == [1, 1, 0]


def test_tied_maxima_share_the_point():
    near = masks([[0, 0, 4, 8]])
    assert metrics.pointing_game(spot((0, 0), (7, 7))[None], near).item() == 0.5
    assert metrics.pointing_game(torch.ones(1, 8, 8), near).item() == 0.5
    assert math.isnan(metrics.pointing_game(DEAD[None], near).item())


def test_peak_in_mask_is_the_pointing_game_without_tolerance():
    ring = ~masks([BOX])
    hits = metrics.pointing_game(torch.stack([spot((0, 0)), spot((2, 3)), spot((0, 0), (2, 3))]), ring.repeat(3, 1, 1))
    assert hits.tolist() == [1, 0, 0.5]


# ---- Two objects, two heatmaps


def test_denser_compares_means_not_sums():
    """Half of the heat lies on the 4 pixels of one object, more than that on the 16 of the other."""
    small, large = masks([[0, 0, 2, 2]]), masks([[4, 4, 8, 8]])
    heat = (4.0 * small + 1.5 * large).float()
    assert metrics.denser(heat, small, large).item() == 1
    assert metrics.denser(heat, large, small).item() == 0
    assert metrics.denser(torch.ones(1, 8, 8), small, large).item() == 0.5
    assert metrics.denser(spot((3, 3))[None], small, large).item() == 0.5  # on neither
    assert math.isnan(metrics.denser(DEAD[None], small, large).item())
    assert math.isnan(metrics.denser(heat, small, ~(large | ~large)).item())


def test_likeness_is_the_cosine():
    heatmaps = torch.stack([spot((0, 0)), spot((0, 0)), spot((0, 0)), DEAD, spot((0, 0)), torch.ones(8, 8)])
    others = torch.stack([7 * spot((0, 0)), spot((1, 1)), spot((0, 0), (1, 1)), DEAD, DEAD, spot((2, 2))])
    values = metrics.likeness(heatmaps, others).tolist()
    assert values[:3] == pytest.approx([1, 0, 2**-0.5])
    assert [math.isnan(value) for value in values] == [False] * 3 + [True] * 2 + [False]
    assert values[5] == pytest.approx(1 / 8)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_dead_and_spoils_no_other(bad):
    heatmaps = torch.ones(2, 8, 8)
    heatmaps[0, 1, 1] = bad
    own, other = masks([BOX], [BOX]), masks([[7, 0, 8, 1]], [[7, 0, 8, 1]])
    for values in (
        metrics.content_heatmap(heatmaps, own),
        metrics.pointing_game(heatmaps, own),
        metrics.denser(heatmaps, own, other),
        metrics.likeness(heatmaps, torch.ones(2, 8, 8)),
        metrics.live(heatmaps).where(metrics.live(heatmaps), torch.nan),
    ):
        assert values.isnan().tolist() == [True, False]


# ---- Errors

HEATMAPS, MASKS = torch.ones(2, 8, 8), torch.ones(2, 8, 8, dtype=torch.bool)
BOXES, COUNTS = torch.tensor([[0.0, 1.0, 4.0, 5.0]] * 2), torch.tensor([3, -1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.live(torch.ones(8, 8)), ValueError, r"heatmaps must be \[B, H, W\] .*, got float32 \[8, 8\]"),
        (lambda: metrics.live(-HEATMAPS), ValueError, "heatmaps must be non-negative, got -1"),
        (lambda: metrics.live([1.0]), TypeError, "heatmaps must be a torch.Tensor, got list"),
        (lambda: metrics.live(HEATMAPS.half()), TypeError, "heatmaps must be torch.float32 or .*, got torch.float16"),
        (
            lambda: metrics.content_heatmap(HEATMAPS, HEATMAPS),
            TypeError,
            r"masks must be a bool .*, got float32 \[2, 8, 8\]",
        ),
        (lambda: metrics.content_heatmap(HEATMAPS, MASKS[:, ::2]), ValueError, r"shape, .*, got \[2, 4, 8\]; upsample"),
        (lambda: metrics.denser(HEATMAPS, MASKS, MASKS[:1]), ValueError, "other_masks must have the heatmaps' shape"),
        (lambda: metrics.likeness(HEATMAPS, HEATMAPS[:1]), ValueError, "others must have the shape and dtype of heatm"),
        (lambda: metrics.sharpen(HEATMAPS, 0.0), ValueError, "power must be finite and > 0, got 0.0"),
        (lambda: metrics.blur(HEATMAPS, -1.0), ValueError, "sigma must be finite and > 0, got -1.0"),
        (lambda: metrics.matching_power(HEATMAPS, 40), ValueError, "area must be a share of the view, .*, got 40"),
        (lambda: metrics.matching_power(HEATMAPS, math.nan), ValueError, "area must be finite and > 0, got nan"),
        (
            lambda: metrics.channel_norm(HEATMAPS),
            TypeError,
            r"features must be .*\[N, C, H, W\], got float32 \[2,",
        ),
        (
            lambda: metrics.box_masks(torch.ones(2, 5), 8),
            TypeError,
            r"boxes must be a tensor \[T, 4\] .*, got float32 \[2, 5\]",
        ),
        (
            lambda: metrics.box_masks(torch.ones(2, 4), 8, counts=torch.tensor([1])),
            ValueError,
            "counts must add up to the number of boxes, 2, got 1",
        ),
        (lambda: metrics.upsample(HEATMAPS, 0), ValueError, "image_size must be at least 1 pixel each way, got 0"),
        (lambda: metrics.upsample(HEATMAPS, 8.5), TypeError, r"image_size must be an int or .*, got float 8\.5"),
        (lambda: metrics.upsample(HEATMAPS, True), TypeError, "image_size must be an int or .*, got bool True"),
        (lambda: metrics.average_views(HEATMAPS, None, 8), TypeError, "views must be pairs .*, got NoneType"),
        (
            lambda: metrics.average_views(HEATMAPS, [HEATMAPS], 8),
            TypeError,
            r"views\[0\] must be \(heatmaps, transform",
        ),
        (lambda: metrics.average_views(HEATMAPS, [], (1, 2, 3)), TypeError, "image_size .*, got tuple of len"),
        (lambda: metrics.box_masks(BOXES, 0), ValueError, "image_size must be at least 1 pixel each way, got 0"),
        (lambda: metrics.box_masks(BOXES, 8, tolerance=-1), ValueError, "tolerance must be finite and >= 0, got -1"),
        (lambda: metrics.box_masks(BOXES * math.nan, 8), ValueError, "boxes must be finite, .*, got .*nan.* at 0"),
        (lambda: metrics.box_masks(BOXES.flip(1), 8), ValueError, "boxes must be .* left <= right, .* at 0"),
        (lambda: metrics.box_masks(BOXES.bool(), 8), TypeError, "boxes must be .* of numbers, got bool"),
        (lambda: metrics.box_masks(BOXES, 8, counts=torch.ones(2)), TypeError, "counts must be .* int64, got float32"),
        (lambda: metrics.box_masks(BOXES, 8, counts=COUNTS), ValueError, "counts must be at least 0, got -1"),
        (lambda: metrics.sharpen(HEATMAPS, "2"), TypeError, "power must be a number, got str '2'"),
        (lambda: metrics.blur(HEATMAPS, None), TypeError, "sigma must be a number, got NoneType"),
        (lambda: metrics.matching_power(HEATMAPS, "x"), TypeError, "area must be a number, got str 'x'"),
    ],
)
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
