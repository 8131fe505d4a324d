"""Stage resample: heatmaps that are near-dead or dead, and cells that no pixel sees."""

from importlib import import_module

import pytest
import torch

from cgc_kernels import CropFlip, heatmap_loss
from cgc_kernels.options import NEAR_DEAD_SUM, OBJECTIVES
from tests.loss.cases import random_maps
from tests.support.cases import EVERY_BACKEND
from tests.support.compare import assert_close, assert_same_bits

# ---- Cells that no pixel sees

UNSEEN = [(7, 17, 7), (11, 25, 13), (14, 34, 24), (14, 38, 27), (15, 33, 28)]


def exact_upsampling(size, cells):
    """U [size, cells] of positions that are exact, as integers; plain floats miss a cell by 1e-15, here and there."""
    up = torch.zeros(size, cells, dtype=torch.float64)
    for pixel in range(size):
        position = min(max((2 * pixel + 1) * cells - size, 0), (cells - 1) * 2 * size)
        low, rest = divmod(position, 2 * size)
        up[pixel, low] += 1 - rest / (2 * size)
        if rest:
            up[pixel, low + 1] += rest / (2 * size)
    return up


def exact_loss(maps, up, eps=1e-8, temperature=0.5):
    """The released objective without a crop."""
    fine = [up @ m @ up.T for m in maps]
    normalised = [m / (m.sum(dim=(1, 2), keepdim=True) + eps) + eps for m in fine]
    o, a = (torch.nn.functional.normalize(m.flatten(1), dim=1, eps=0) for m in normalised)
    own = torch.eye(len(a), dtype=torch.bool)
    logits = torch.where(own, (a * o).sum(dim=1, keepdim=True), a @ a.T) / temperature
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(a)))


@pytest.mark.parametrize(("size", "cells", "unseen"), UNSEEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_cell_that_no_pixel_sees_has_no_share_in_any(backend, dtype, size, cells, unseen):
    """A map that is lit there alone is divided by next to nothing: any share spoils the other samples' gradients."""
    check_unseen(backend, dtype, size, cells, unseen, CropFlip.identity(3, size))
    check_unseen(backend, dtype, size, cells, unseen, torch.eye(3, dtype=torch.float64).expand(3, 3, 3))


def check_unseen(backend, dtype, size, cells, unseen, transform):
    up = exact_upsampling(size, cells)
    assert (up[:, unseen] == 0).all()
    maps = random_maps(3, (cells, cells), dtype=dtype)
    maps[1, 0] = 0
    maps[1, 0, unseen, 1] = 1
    leaves = [m.clone().requires_grad_() for m in maps]
    loss = heatmap_loss(*leaves, transform, image_size=size, backend=backend)
    exact = [m.double().requires_grad_() for m in maps]
    expected = torch.autograd.grad(exact_loss(exact, up), exact)
    for grad, truth in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        assert_close(grad[1:], truth[1:], 1e-5 if dtype == torch.float32 else 1e-10, oracle=True)


# ---- Near-dead heatmaps


def blob(scale, side=(4, 5), dtype=torch.float64):
    return random_maps(1, side, seed=3, dtype=dtype)[0] * scale


def grads_of(maps, backend, eps=1e-8, **settings):
    leaves = [m.clone().requires_grad_() for m in maps]
    crop = CropFlip.identity(len(maps[0]), (6, 7))
    loss = heatmap_loss(*leaves, crop, image_size=(6, 7), eps=eps, backend=backend, **settings)
    return loss.detach(), torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("view", [0, 1])
def test_near_dead_gradients_are_damped_by_the_rule(backend, view):
    """The truth undamped comes from autograd through the formulas, with the rule applied by hand."""
    eps, size = 1e-8, (6, 7)
    for target in (1e-9, 1e-6, 0.3e-3, 0.99e-3, 1.01e-3, 1.0, 1e3):
        maps = [random_maps(2, (4, 5), seed=s)[0] for s in (1, 2)]
        fine = torch.nn.functional.interpolate(maps[view][:, None], size=size, mode="bilinear")
        maps[view][0] *= target / fine[0].sum()
        loss, grads = grads_of(maps, backend)
        leaves = [m.clone().requires_grad_() for m in maps]
        undamped = undamped_loss(*leaves, size, eps)
        truth = list(torch.autograd.grad(undamped, leaves))
        if target < NEAR_DEAD_SUM:
            truth[view][0] *= (target + eps) / NEAR_DEAD_SUM
        assert_close(loss, undamped.detach(), 1e-12)
        for grad, exact in zip(grads, truth, strict=True):
            for sample in (0, 1):
                assert_close(grad[sample], exact[sample], 1e-9, what=f"sum {target}")


@pytest.mark.parametrize(("backend", "module"), [("reference", "reference.damping"), ("torch", "torch.resample")])
def test_ordinary_gradients_are_untouched_to_the_last_bit(monkeypatch, backend, module):
    maps = random_maps(3, (4, 5))
    damped = grads_of(maps, backend)
    monkeypatch.setattr(import_module(f"cgc_kernels.backends.{module}"), "NEAR_DEAD_SUM", 0.0)
    undamped = grads_of(maps, backend)
    for one, other in zip((damped[0], *damped[1]), (undamped[0], *undamped[1]), strict=True):
        assert_same_bits(one, other)
    assert not torch.equal(grads_of(maps * 1e-7, backend)[1][0], damped[1][0])


def undamped_loss(originals, augmented, size, eps):
    """Released objective, tau = 0.5, whole view, no flip, in a few lines."""
    fine = [
        torch.nn.functional.interpolate(m[:, None], size=size, mode="bilinear")[:, 0] for m in (originals, augmented)
    ]
    o, a = (m / (m.sum(dim=(1, 2), keepdim=True) + eps) + eps for m in fine)
    o, a = (m.flatten(1) / m.flatten(1).norm(dim=1, keepdim=True) for m in (o, a))
    logits = (a @ a.T).diagonal_scatter((a * o).sum(1)) / 0.5
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)))


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_dead_heatmaps_are_finite(backend):
    for objective in OBJECTIVES:
        for dtype in (torch.float32, torch.float64):
            maps = random_maps(3, (4, 5), dtype=dtype)
            maps[0, 1] = 0
            maps[1, 2] = 0
            loss, grads = grads_of(maps, backend, objective=objective, consistency=1.0)
            assert loss.isfinite()
            assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_the_scale_of_a_heatmap_does_not_matter(backend):
    maps = random_maps(3, (4, 5))
    scale = torch.tensor([1e-1, 1.0, 1e4], dtype=torch.float64)[:, None, None]
    loss, grads = grads_of(maps, backend, eps=1e-15)
    scaled_loss, scaled = grads_of(maps * scale, backend, eps=1e-15)
    assert_close(scaled_loss, loss, 1e-12)
    for grad, scaled_grad in zip(grads, scaled, strict=True):
        assert_close(scaled_grad * scale, grad, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_mean_square_is_never_negative(backend, dtype):
    """Identical views: 2 - 2 cos cancels to the last bit, and either sign of the rest must not show."""
    for seed in range(40):
        maps = random_maps(4, (4, 7), seed=seed, dtype=dtype)[0]
        maps.pow_(seed % 5)
        loss, grads = grads_of((maps, maps.clone()), backend, objective="mse")
        assert 0 <= loss < (1e-10 if dtype == torch.float32 else 1e-16)
        assert all(grad.isfinite().all() for grad in grads)
