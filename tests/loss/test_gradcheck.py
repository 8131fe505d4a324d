"""Gradients against finite differences, float64; no tolerance for gradients that differ between two runs."""

import pytest
import torch
from torch.autograd import gradcheck

from cgc_kernels import CropFlip, backends, cgc_loss, gradcam, heatmap_loss
from cgc_kernels.options import OBJECTIVES
from tests.support.cases import BACKENDS, simple_case, warp, with_inverse

SIZE = (5, 4)
# Cosines of mild maps differ by 1e-3 a step at most: the third derivative stays below this tolerance.
TOLERANCE = {"nondet_tol": 0.0, "eps": 1e-6, "atol": 1e-7, "rtol": 1e-5}


def transform(kind):
    if kind == "crop":
        top, left, height, width = torch.tensor([[1, 0, 0], [0, 1, 0], [3, 1, 5], [4, 2, 4]])
        return CropFlip(top, left, height, width, torch.tensor([True, False, True]))
    kinds = ["homography", "affine", "blind"] if kind == "homography" else ["affine", "mirror", "identity"]
    return warp(torch.Generator().manual_seed(2), SIZE, kinds)


def heatmaps():
    maps = torch.rand(2, 3, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.2
    return [m.clone().requires_grad_() for m in maps]


def leaves(weighting):
    """Heatmaps are alive everywhere: finite differences must not cross the ReLU."""
    pooled = weighting == "pooled"
    case = simple_case(batch=3, channels=2, side=(2, 2), pooled=pooled, seed=3)
    return [v.abs().add_(0.2).requires_grad_() for v in case.views]


@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_cgc_loss(backend, objective, weighting):
    settings = {"image_size": SIZE, "temperature": 0.2, "objective": objective, "consistency": 0.3, "backend": backend}
    settings["weighting"] = "gradcam" if weighting == "pooled" else weighting

    def loss(features, gradients, aug_features, aug_gradients):
        return cgc_loss((features, gradients), (aug_features, aug_gradients), transform("crop"), **settings)

    assert gradcheck(loss, leaves(weighting), **TOLERANCE)


@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcam(backend, weighting):
    name = "gradcam" if weighting == "pooled" else weighting
    features, gradients, *_ = leaves(weighting)
    features = features.detach()
    features[1] *= -1  # dead, and far from the ReLU's corner
    assert gradcheck(
        lambda f, g: gradcam(f, g, weighting=name, backend=backend), (features.requires_grad_(), gradients), **TOLERANCE
    )


@pytest.mark.parametrize("kind", ["crop", "affine", "homography"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_heatmap_loss(backend, objective, kind):
    settings = {"image_size": SIZE, "temperature": 0.2, "objective": objective, "consistency": 0.3, "backend": backend}
    assert gradcheck(lambda m, n: heatmap_loss(m, n, transform(kind), **settings), heatmaps(), **TOLERANCE)


@pytest.mark.parametrize("kind", ["crop", "homography"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_consistency_alone(backend, kind):
    settings = {"image_size": SIZE, "objective": "consistency", "backend": backend}
    assert gradcheck(lambda m, n: heatmap_loss(m, n, transform(kind), **settings), heatmaps(), **TOLERANCE)


@pytest.mark.parametrize("kind", ["crop", "homography"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_resample(backend, objective, kind):
    stage = backends.choose(backend, torch.device("cpu")).resample

    def outputs(m, n):
        rows, keys, positives = stage(m, n, with_inverse(transform(kind)), SIZE, 1e-3, objective)
        return positives if objective == "mse" else (rows, keys, positives)

    assert gradcheck(outputs, heatmaps(), **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_contrast(backend):
    stage = backends.choose(backend, torch.device("cpu")).contrast
    generator = torch.Generator().manual_seed(4)
    rows, keys = torch.rand(2, 5, 3, generator=generator, dtype=torch.float64)
    positives = torch.rand(5, generator=generator, dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (rows, keys, positives)]
    assert gradcheck(lambda *tensors: stage(*tensors, 0.3), inputs, **TOLERANCE)
