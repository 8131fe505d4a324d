"""Heatmaps made of others, on maps with known answers."""

import pytest
import torch

from cgc_kernels import CropFlip, metrics
from tests.metrics.test_places import spot


def test_upsample_keeps_a_constant_and_the_size():
    assert torch.equal(metrics.upsample(torch.full((2, 3, 3), 0.5), (8, 5)), torch.full((2, 8, 5), 0.5))


def test_channel_norm_by_hand():
    features = torch.zeros(1, 2, 2, 2, dtype=torch.bfloat16)
    features[0, :, 0, 1] = torch.tensor([3.0, -4.0])
    norms = metrics.channel_norm(features)
    assert norms.dtype == torch.float32
    assert norms.tolist() == [[[0, 5], [0, 0]]]


def views_of(heatmaps, crop):
    """The one view of a heatmap that a crop makes, as average_views takes it."""
    return [(crop.apply(heatmaps[:, None])[:, 0], crop)]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("as_matrix", [False, True])
def test_a_view_comes_back_to_where_it_was_cut(flip, as_matrix):
    """Twice as large in the view: a bright square of the original is a square again, in its place."""
    heatmaps = torch.zeros(1, 16, 16, dtype=torch.float64)
    heatmaps[0, 6:10, 8:11] = 4.0
    crop = CropFlip(*torch.tensor([[4], [4], [8], [8]]), torch.tensor([flip]))
    ((view, _),) = views_of(heatmaps, crop)
    transform = crop.matrix(16) if as_matrix else crop
    nothing = torch.zeros_like(heatmaps)
    back = 2 * metrics.average_views(nothing, [(view, transform)], 16)[0]
    assert back[8, 9] == pytest.approx(4)
    assert (back - heatmaps[0]).abs().mean() < 0.1
    assert not back[:4].any()
    assert not back[:, 12:].any()


def test_pixels_that_no_other_view_shows_keep_the_original():
    heatmaps = torch.full((1, 8, 8), 2.0)
    crop = CropFlip(*torch.tensor([[0], [0], [4], [8]]), torch.tensor([False]))
    mean = metrics.average_views(heatmaps, [(torch.full((1, 8, 8), 6.0), crop)], 8)[0]
    assert torch.equal(mean, torch.cat([torch.full((4, 8), 4.0), torch.full((4, 8), 2.0)]))
    twice = metrics.average_views(heatmaps, [(torch.full((1, 8, 8), 6.0), crop)] * 2, 8)[0]
    assert twice[0, 0] == pytest.approx(14 / 3)


def test_the_mean_with_itself_is_itself():
    heatmaps = torch.rand(2, 7, 5)
    views = [(heatmaps, CropFlip.identity(2, (20, 30)))] * 4
    mean = metrics.average_views(heatmaps, views, (20, 30))
    assert torch.allclose(mean, metrics.upsample(heatmaps, (20, 30)), atol=1e-6)
    assert torch.equal(metrics.average_views(heatmaps, [], 20), metrics.upsample(heatmaps, 20))


def test_a_homography_shows_what_it_shows():
    """A shift by three pixels: the view's column j is the original's j + 3."""
    heatmaps = spot((2, 6))[None].double()
    shift = torch.eye(3, dtype=torch.float64)[None].clone()
    shift[0, 0, 2] = -3
    view = torch.zeros_like(heatmaps)
    view[0, 2, 3] = 1
    mean = metrics.average_views(heatmaps, [(view, shift)], 8)
    assert torch.allclose(mean[0], heatmaps[0])
    behind = -shift  # the same pixels, all of them behind the camera
    assert torch.equal(metrics.average_views(3 * heatmaps, [(view, behind)], 8), 3 * heatmaps)


def test_a_view_of_another_shape_is_refused():
    heatmaps = torch.ones(2, 7, 7)
    with pytest.raises(ValueError, match=r"views\[0\]\[0\] must have the shape and dtype of heatmaps"):
        metrics.average_views(heatmaps, [(torch.ones(2, 6, 7), CropFlip.identity(2, 8))], 8)
    with pytest.raises(ValueError, match="transform must hold one crop per image, 2, got 1"):
        metrics.average_views(heatmaps, [(heatmaps, CropFlip.identity(1, 8))], 8)
