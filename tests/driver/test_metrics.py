"""The driver's own metrics, on cases with known answers."""

import math

import pytest
import torch
from driver import metrics

from cgc_kernels import CropFlip
from tests.metrics.test_places import DEAD, spot


def test_mean_of_classes_leaves_out_what_is_unknown():
    values = torch.tensor([1, 1, 0, 0, torch.nan, torch.nan], dtype=torch.float64)
    assert metrics.mean_of_classes(values, torch.tensor([0, 0, 0, 1, 1, 2])) == pytest.approx((2 / 3 + 0) / 2)
    assert math.isnan(metrics.mean_of_classes(values[4:], torch.tensor([1, 2])))


# ---- Predictions


def test_label_ranks():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 5.0], [5.0, 4.0, 6.0]])
    assert metrics.label_ranks(logits, torch.tensor([0, 1, 1])).tolist() == [0, 1, 2]


def test_label_ranks_break_ties_as_argmax():
    logits = torch.ones(3, 3)
    ranks = metrics.label_ranks(logits, torch.tensor([0, 1, 2]))
    assert ranks.tolist() == [0, 1, 2]
    assert (ranks == 0).tolist() == (logits.argmax(1) == torch.tensor([0, 1, 2])).tolist()


# ---- Twins


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
