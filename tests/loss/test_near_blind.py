"""Warps that see a sliver of a pixel: a value like any other, and a gradient that is multiplied by ||T(m)|| / eps where
that is below 1 (docs/mathematics.md, section 1)."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cgc_kernels import heatmap_loss
from cgc_kernels.backends.reference.resample import fine_maps, transform_maps
from cgc_kernels.options import NEAR_DEAD_SUM, OBJECTIVES
from tests.support.cases import BACKENDS, EVERY_BACKEND, examples, generators, with_inverse
from tests.support.compare import assert_close

SCALES = {"ordinary": 1.0, "dead": 0.0, "almost dead": 1e-14, "near-dead": 1e-9}
EDGES = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def sliver(size, overlap, edge, tilt=0.0):
    """A matrix under which the views overlap by `overlap` pixels at an edge or corner; tilted, by less and less."""
    matrix = torch.eye(3, dtype=torch.float64)
    for axis, (side, pixels) in enumerate(zip(edge, size[::-1], strict=True)):
        matrix[axis, 2] = side * (pixels - overlap)
        if side:
            matrix[axis, 1 - axis] = tilt * side * overlap / max(size)
    return matrix


@st.composite
def slivers(draw):
    generator, batch = draw(generators()), draw(st.integers(1, 4))
    side, size = ((draw(st.integers(low, high)), draw(st.integers(low, high))) for low, high in ((1, 6), (2, 13)))
    maps = torch.rand(2, batch, *side, generator=generator) + 0.1
    for sample in range(batch):
        maps[0, sample] *= SCALES[draw(st.sampled_from(list(SCALES)))]
    overlaps = [10 ** draw(st.floats(-8, 0)) for _ in range(batch)]
    edges, tilts = st.sampled_from(EDGES), st.sampled_from([0.0, 0.5])
    transform = torch.stack([sliver(size, overlap, draw(edges), draw(tilts)) for overlap in overlaps])
    given_ = {
        "image_size": size,
        "objective": draw(st.sampled_from(OBJECTIVES)),
        "consistency": draw(st.sampled_from([0.0, 1.0])),
        "eps": draw(st.sampled_from([1e-8, 1e-8, 1e-3, 1e-12])),
    }
    return maps, transform, given_, min(overlaps)


def loss_and_grads(maps, transform, backend, **given_):
    leaves = [m.clone().requires_grad_() for m in maps]
    loss = heatmap_loss(*leaves, transform, backend=backend, **given_)
    return loss.detach(), torch.autograd.grad(loss, leaves)


def floors(maps, transform, given_):
    """Of both views, [B]: what gradients are made of, ||T|| / (max(||T(m)||, eps) max(s, s_min)), times 0.01."""
    size, eps = given_["image_size"], given_["eps"]
    weight = 2 / math.prod(size) if given_["objective"] == "mse" else 2
    inverse, ones = with_inverse(transform), torch.ones(len(transform), *size, dtype=torch.float64)
    for m, view in zip(maps, (lambda fine: transform_maps(fine, inverse), lambda fine: fine), strict=True):
        norm = view(fine_maps(m, size, eps)).flatten(1).norm(dim=1)
        sums = F.interpolate(m[:, None], size=size, mode="bilinear").sum(dim=(1, 2, 3))
        seen = view(ones).flatten(1).norm(dim=1)
        yield 0.01 * (weight + given_["consistency"]) * seen / (norm.clamp_min(eps) * sums.clamp_min(NEAR_DEAD_SUM))


def check_slivers(backend, dtype, max_examples):
    @settings(examples, max_examples=max_examples)
    @given(slivers())
    def check(case):
        maps, transform, given_, overlap = case
        loss, grads = loss_and_grads(maps.to(dtype), transform, backend, **given_)
        exact_loss, exact_grads = loss_and_grads(maps.double(), transform, "reference", **given_)
        # Positions are rounded: to 1e-16 of the view, and so to 1e-16 / overlap of a share.
        tol = TOLERANCE[dtype] + 1e-15 * max(given_["image_size"]) / overlap
        assert_close(loss, exact_loss, tol, floor=1.0, oracle=True)
        for view, grad, exact, floor in zip(
            "oa", grads, exact_grads, floors(maps.double(), transform, given_), strict=True
        ):
            for i, one in enumerate(grad):
                assert_close(one, exact[i], tol, floor=floor[i].item(), what=f"{view} {i}", oracle=True)

    check()


def check_rule(backend, dtype, kinds=tuple(SCALES)):
    """A view is a column of pixels times the overlap: its unit map and their gradient are those of the whole column,
    but for the rule."""
    size, eps = (4, 9), 1e-8
    for kind in kinds:
        maps = torch.rand(2, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype) + 0.1
        maps[0, 0] *= SCALES[kind]
        column = fine_maps(maps[0, :1].double(), size, eps)[0, :, 0].norm().item()
        whole = None
        for overlap in (1.0, 1e-4, 1e-8):
            transform = torch.stack([sliver(size, overlap, (1, 0)), torch.eye(3, dtype=torch.float64)])
            loss, grads = loss_and_grads(maps, transform, backend, image_size=size, eps=eps)
            whole = whole or (loss, grads)
            tol = 1e-7 + (1e-4 if dtype == torch.float32 else 0)
            assert_close(loss, whole[0], tol)
            damped = whole[1][0][0] * min(1, overlap * column / eps)
            assert damped.abs().max() > 0
            assert_close(grads[0][0], damped, tol, what=f"{kind}, {overlap}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gradients_are_damped_by_the_rule(backend, dtype):
    check_rule(backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_equals_the_reference(backend):
    check_slivers(backend, torch.float64, 100)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_float32_equals_the_reference(backend):
    check_slivers(backend, torch.float32, 100)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_shift_by_the_whole_view_sees_nothing(backend):
    """Not 1e-16 of a pixel, of which the cosine would be anything."""
    size = (3, 21)
    maps = torch.rand(2, len(EDGES), 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    transform = torch.stack([sliver(size, 0.0, edge) for edge in EDGES])
    loss, _ = loss_and_grads(maps, transform, backend, image_size=size, objective="mse")
    assert_close(loss, torch.tensor(1 / math.prod(size), dtype=torch.float64), 1e-12)
