"""Effective area, and what is as sharp as something else, on heatmaps with known answers."""

import math

import pytest
import torch

from cgc_kernels import metrics
from tests.metrics.test_places import BOX, DEAD, masks, spot


def test_effective_area_counts_equal_pixels():
    areas = metrics.effective_area(torch.stack([spot((0, 0), (3, 3)), torch.ones(8, 8), DEAD])).tolist()
    assert areas[:2] == pytest.approx([2 / 64, 1])
    assert math.isnan(areas[2])


def test_effective_area_of_unequal_masses():
    heat = 3 * spot((0, 0)) + spot((1, 1))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert metrics.effective_area(heat[None]).item() == pytest.approx(math.exp(entropy) / 64)


def test_sharpen_keeps_dead_maps_dead_and_squares_the_rest():
    heatmaps = torch.stack([spot((0, 0)) + 0.5 * spot((1, 1)), DEAD])
    sharp = metrics.sharpen(4 * heatmaps, 2)
    assert torch.equal(sharp, torch.stack([spot((0, 0)) + 0.25 * spot((1, 1)), DEAD]))


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_matching_power_finds_the_power(power):
    heatmaps = torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    area = metrics.effective_area(metrics.sharpen(heatmaps, power)).mean().item()
    assert metrics.matching_power(torch.cat([heatmaps, heatmaps[:1] * 0]), area) == pytest.approx(power, rel=1e-6)


def test_matching_power_gives_the_nearer_end_where_nothing_fits():
    heatmaps = spot((0, 0), (1, 1))[None]
    assert metrics.matching_power(heatmaps, 0.5) == pytest.approx(1 / 64)
    assert math.isnan(metrics.matching_power(DEAD[None], 0.5))
    assert metrics.matching_power(heatmaps, 1 / 64) == pytest.approx(64)


def test_a_flat_heatmap_has_one_area_whatever_the_power():
    flat = torch.full((2, 8, 8), 3.0)
    assert metrics.effective_area(metrics.sharpen(flat, 9.0)).tolist() == pytest.approx([1, 1])
    assert metrics.matching_power(flat, 0.5) == pytest.approx(64)
    assert metrics.content_heatmap(metrics.sharpen(flat, 9.0), masks([BOX], [BOX])).tolist() == [0.25, 0.25]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sharpened_heatmaps_have_the_area_asked_for(dtype):
    """Together, not one by one: of a sharp and a wide one the mean is met."""
    cells = torch.arange(16, dtype=dtype)
    squares = (cells[:, None] - 7) ** 2 + (cells - 5) ** 2
    heatmaps = torch.stack([torch.exp(-squares / (2 * sigma**2)) for sigma in (1.5, 4.0)])
    for area in (0.05, 0.2, 0.5):
        sharp = metrics.sharpen(heatmaps, metrics.matching_power(heatmaps, area))
        assert metrics.effective_area(sharp).mean().item() == pytest.approx(area, abs=1e-6)
    # A power p of a Gaussian is one of variance sigma^2 / p, whose area falls as 1 / p where the view does not cut it.
    narrow = heatmaps[:1]
    area = metrics.effective_area(narrow).item()
    assert metrics.matching_power(narrow, area / 2) == pytest.approx(2, rel=1e-2)


def test_heatmaps_that_are_nan_are_left_out():
    heatmaps = torch.rand(3, 8, 8, dtype=torch.float64)
    power = metrics.matching_power(heatmaps[1:], 0.4)
    heatmaps[0, 3, 3] = math.nan
    assert metrics.matching_power(heatmaps, 0.4) == power
    assert metrics.effective_area(heatmaps).isnan().tolist() == [True, False, False]


# ---- Blur


def test_blur_of_a_spot_is_the_gaussian():
    spread = metrics.blur(spot((7, 7), size=15)[None].double(), 1.0)[0]
    weights = torch.exp(-((torch.arange(-3.0, 4.0, dtype=torch.float64)) ** 2) / 2)
    weights = weights / weights.sum()
    assert torch.allclose(spread[4:11, 4:11], weights[:, None] * weights)
    assert spread[3].sum() == spread[:, 11].sum() == 0  # beyond 3 sigma


def test_blur_keeps_constants_up_to_the_border_and_the_dead():
    assert metrics.blur(torch.full((1, 5, 7), 3.0), 2.0)[0].numpy() == pytest.approx(3.0)
    assert not metrics.blur(DEAD[None], 1.0).any()
    assert torch.allclose(metrics.blur(spot((0, 1), (2, 2))[None], 0.1), spot((0, 1), (2, 2)), atol=1e-6)


def test_autocast_changes_nothing():
    heatmaps = torch.rand(2, 7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        blurred = metrics.blur(heatmaps, 1.0)
    assert torch.equal(blurred, metrics.blur(heatmaps, 1.0))
