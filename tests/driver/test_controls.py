"""Each control on heatmaps with known answers: what is mere post-processing gains nothing over it."""

import pytest
import torch
from driver import controls, measuring
from driver.explained import packed

from cgc_kernels import CropFlip
from cgc_kernels.metrics import blur, sharpen
from tests.driver.cases import answers

SIZE = 16
BOX = [4, 4, 10, 12]


def random_maps(count=8, seed=0):
    return torch.rand(count, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) ** 2


def known(heatmaps, **more):
    """Answers on images that all have the object in one box, with a mask of its left half."""
    count = len(heatmaps)
    mask = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    mask[:, 4:12, 4:7] = True
    boxes = {"boxes": torch.tensor([BOX] * count).float(), "box_counts": torch.ones(count, dtype=torch.int64)}
    return answers(heatmaps, **{**boxes, "masks": packed(mask), **more})


def scores(explained):
    return measuring.summarise(measuring.measures(explained))


def test_a_power_of_the_baseline_gains_nothing_over_its_control():
    maps, aug_maps, runner_up = random_maps(), random_maps(seed=1), random_maps(seed=2)
    baseline = known(maps, aug_heatmaps=aug_maps, runner_up_heatmaps=runner_up)
    squared = known(maps**2, aug_heatmaps=aug_maps**2, runner_up_heatmaps=runner_up**2)
    method, control = scores(squared), controls.of_baseline(baseline, squared)
    for name in ("content_heatmap", "content_mask", "consistency", "likeness"):
        assert control[f"sharpness_matched_{name}"] == pytest.approx(method[name], abs=1e-3)
    assert "sharpness_matched_pointing_game" not in control


@pytest.mark.parametrize("sigma", controls.BLURS)
def test_a_blurred_power_of_the_baseline_gains_nothing_over_its_control(sigma):
    """The control is the best of all widths, so it is at least that."""
    maps, aug_maps = random_maps(), random_maps(seed=1)
    made = [sharpen(blur(own, sigma), 3.0) for own in (maps, aug_maps)]
    explained = known(made[0], aug_heatmaps=made[1])
    method, control = scores(explained), controls.of_baseline(known(maps, aug_heatmaps=aug_maps), explained)
    for name in ("content_heatmap", "content_mask", "pointing_game", "peak_in_mask", "consistency"):
        assert control[f"blurred_{name}"] >= method[name] - 1e-2, name


@pytest.mark.parametrize(("control", "column"), [("channel_norm", "norms"), ("centred", "centred_heatmaps")])
def test_other_maps_of_the_baseline_are_controls(control, column):
    """Maps whose fourth power the method's heatmaps are: the norms without a class, the class less the mean of all."""
    maps, others = random_maps(), random_maps(seed=3)
    explained = known(others**4)
    method, found = scores(explained), controls.of_baseline(known(maps, **{column: others}), explained)
    for name in ("content_heatmap", "content_mask", "pointing_game", "peak_in_mask"):
        assert found[f"{control}_{name}"] == pytest.approx(method[name], abs=1e-3)
    assert not [name for name in controls.of_baseline(known(maps), explained) if name.startswith(control)]


def test_five_views_of_one_heatmap_average_to_it():
    maps = random_maps(4)
    whole = torch.tensor([[[0, 0, SIZE, SIZE, 0]] * 3] * 4)
    baseline = known(maps, more_heatmaps=maps[:, None].repeat(1, 3, 1, 1), more_crops=whole)
    own, control = scores(baseline), controls.of_baseline(baseline, baseline)
    for name in ("content_heatmap", "content_mask", "pointing_game", "peak_in_mask"):
        assert control[f"five_views_{name}"] == pytest.approx(own[name], abs=1e-3)
    assert not [name for name in controls.of_baseline(known(maps), baseline) if name.startswith("five_views")]


def test_a_view_that_sees_the_object_moves_the_mean_onto_it():
    """The original's heat lies beside the box; the other views, crops of the box flipped or not, are hot everywhere."""
    maps = torch.zeros(2, SIZE, SIZE)
    maps[:, 14, 14] = maps[:, 0, 0] = 1.0
    left, top, right, bottom = BOX
    rows = torch.tensor([[top, left, bottom - top, right - left, flip] for flip in (0, 1)])
    baseline = known(
        maps,
        aug_heatmaps=torch.ones(2, SIZE, SIZE),
        crops=rows,
        more_heatmaps=torch.ones(2, 3, SIZE, SIZE),
        more_crops=rows[:, None].repeat(1, 3, 1),
    )
    made = controls._mean_of_views(baseline)["maps"]
    inside = torch.zeros(SIZE, SIZE)
    inside[top:bottom, left:right] = 4 / 5
    assert torch.allclose(made, maps + inside)
    assert CropFlip.from_rows(rows).flip.tolist() == [False, True]
    expected = 100 * inside.sum().item() / (inside.sum().item() + 2)
    assert controls.of_baseline(baseline, known(made))["five_views_content_heatmap"] == pytest.approx(
        expected, rel=1e-4
    )


def test_corrupt_images_and_dead_heatmaps_decide_nothing():
    maps = random_maps(6)
    spoilt = maps.clone()
    spoilt[0], spoilt[1, 0, 0] = 0.0, torch.nan
    spoilt[2] = 7.0
    corrupt = torch.tensor([False, False, True, False, False, False])
    method = known(random_maps(seed=5) ** 3)
    left = controls.of_baseline(known(spoilt, corrupt=corrupt), method)
    clean = controls.of_baseline(known(maps[3:]), method)
    assert left == pytest.approx(clean, abs=1e-3)


def test_nothing_to_compare():
    method, dead = known(random_maps(3)), known(torch.zeros(3, SIZE, SIZE))
    unread = known(random_maps(3), corrupt=torch.ones(3, dtype=torch.bool))
    pairs = [(dead, method), (method, dead), (unread, method), (method, unread)]
    assert [controls.of_baseline(*pair) for pair in pairs] == [{}] * 4


def test_a_flat_baseline_scores_what_a_flat_heatmap_does():
    control = controls.of_baseline(known(torch.ones(3, SIZE, SIZE)), known(random_maps(3)))
    assert control["sharpness_matched_content_heatmap"] == pytest.approx(100 * 48 / 256)
    assert control["sharpness_matched_content_mask"] == pytest.approx(100 * 24 / 256)


def test_few_and_coarse_heatmaps_are_enough_for_the_power():
    """Of a view of 224 px every fourth row and column: the method's own heatmaps are still matched exactly."""
    count = controls.AREA_IMAGES + 100
    thin = controls._thinned(answers(torch.rand(count, 3, 3), image_size=8), controls._as_they_are)
    assert thin.shape == (count // 2, 8, 8)
    maps = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(0))
    large = answers(maps, image_size=224)
    assert controls._thinned(large, controls._as_they_are).shape == (2, 56, 56)
    control = controls.of_baseline(large, large)
    assert control["sharpness_matched_consistency"] == pytest.approx(100)
