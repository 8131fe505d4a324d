"""Stage resample: heatmaps, transform -> unit rows and positives, in every backend."""

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgc_kernels import CropFlip, gradcam, heatmap_loss
from cgc_kernels.backends.reference.resample import fine_maps, transform_maps
from cgc_kernels.options import NEAR_DEAD_SUM, OBJECTIVES, contrasts
from tests.loss.cases import random_maps, stage
from tests.support.cases import (
    BACKENDS,
    CPP,
    EVERY_BACKEND,
    KINDS,
    crop_flip,
    examples,
    generators,
    lay_out,
    transforms,
    views,
    warp,
    with_inverse,
)
from tests.support.compare import assert_close, assert_same_bits


@st.composite
def inputs(draw):
    generator = draw(generators())
    batch = draw(st.integers(1, 4))
    side = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    size = draw(st.integers(1, 17)), draw(st.integers(1, 17))
    maps = []
    for _ in range(2):
        kinds = draw(st.lists(st.sampled_from(KINDS), min_size=batch, max_size=batch))
        maps.append(gradcam(*views(generator, batch, 3, *side, kinds), weighting="elementwise", backend="reference"))
    transform = draw(transforms(batch, size, generator))
    upstream = torch.randn(batch, batch + 1, generator=generator, dtype=torch.float64)
    layouts = [draw(st.sampled_from(["contiguous", "sliced", "transposed"])) for _ in range(2)]
    objective = draw(st.sampled_from(OBJECTIVES))
    return (
        *map(lay_out, maps, layouts),
        with_inverse(transform),
        size,
        draw(st.sampled_from([1e-8, 1e-3])),
        objective,
        upstream,
    )


def similarities_and_grads(backend, heatmaps, aug_heatmaps, transform, size, eps, objective, upstream):
    """What contrast sees, [B, B + 1]: rows @ keys^T and the positives; and gradients of its product with `upstream`."""
    leaves = [m.detach().requires_grad_() for m in (heatmaps, aug_heatmaps)]
    rows, keys, positives = stage(backend)(*leaves, transform, size, eps, objective)
    assert positives.dtype == torch.float64
    if contrasts(OBJECTIVES.index(objective)):
        seen = torch.cat([rows @ keys.T, positives[:, None]], dim=1)
    else:
        seen = positives[:, None]
        upstream = upstream[:, -1:]
    return seen.detach(), torch.autograd.grad(seen, leaves, upstream)


def magnitude(maps, transform, size, eps):
    """[B]: 1 / (norm * sum) of each original and augmented map, which is what gradients are made of."""
    fine = [fine_maps(m, size, eps) for m in maps]
    seen = transform_maps(fine[0], transform), fine[1]
    for m, s in zip(maps, seen, strict=True):
        norm = s.flatten(1).norm(dim=1)
        sums = torch.nn.functional.interpolate(m[:, None], size=size, mode="bilinear").sum(dim=(1, 2, 3))
        yield torch.where(norm > 0, 1 / (norm.clamp_min(eps) * sums.clamp_min(NEAR_DEAD_SUM)), 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_reference(backend):
    @examples
    @given(inputs())
    def check(case):
        seen, grads = similarities_and_grads(backend, *case)
        expected, expected_grads = similarities_and_grads("reference", *case)
        assert_close(seen, expected, 1e-11, floor=1, what="similarities")
        scales = magnitude(case[:2], *case[2:5])
        for name, grad, expected_grad, scale in zip(
            ("original", "augmented"), grads, expected_grads, scales, strict=True
        ):
            for i, one in enumerate(grad):
                assert_close(one, expected_grad[i], 1e-10, floor=0.01 * scale[i], what=f"{name} {i}")

    check()


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_identity_crop_is_the_identity(backend, objective):
    maps, _ = random_maps(3, (4, 5))
    transform = CropFlip.identity(3, (13, 8))
    rows, keys, positives = stage(backend)(maps, maps, transform, (13, 8), 1e-8, objective)
    assert_close(positives.double(), torch.ones(3, dtype=torch.float64), 1e-13)
    if contrasts(OBJECTIVES.index(objective)):
        similarities = rows @ keys.T
        assert_close(similarities, similarities.T.contiguous(), 1e-13)
        assert_close(similarities.diagonal().contiguous(), torch.ones(3, dtype=torch.float64), 1e-13)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_norm_of_one_is_none_of_zero(backend, objective):
    """A view of one pixel holds (1 / (1 + eps) + eps): with this eps 1, to the last bit."""
    ones = torch.ones(2, 1, 1, dtype=torch.float64)
    for found in stage(backend)(ones, ones, CropFlip.identity(2, 1), (1, 1), 2.0**-30, objective):
        assert found.numel() == 0 or (found == 1).all()


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_identity_matrix_is_the_identity_crop(backend):
    maps = random_maps(3, (4, 5))
    matrices = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    losses = [
        heatmap_loss(*maps, transform, image_size=(13, 8), backend=backend)
        for transform in (CropFlip.identity(3, (13, 8)), matrices, matrices[:, :2], 5 * matrices)
    ]
    for loss in losses[1:]:
        assert_close(loss, losses[0], 1e-12)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_flip_twice_is_no_flip(backend):
    """Flipping the crop and the augmented map changes nothing, since the mirrored map is the flipped crop's."""
    original, augmented = random_maps(4, (4, 5))
    crop = crop_flip(torch.Generator().manual_seed(1), (9, 12), ["any", "pixel", "border", "full"])
    mirrored = crop._replace(flip=~crop.flip)
    first = heatmap_loss(original, augmented, crop, image_size=(9, 12), objective="mse", backend=backend)
    second = heatmap_loss(original, augmented.flip(2), mirrored, image_size=(9, 12), objective="mse", backend=backend)
    other = heatmap_loss(original, augmented, mirrored, image_size=(9, 12), objective="mse", backend=backend)
    assert_close(second, first, 1e-12)
    assert abs(float(other - first)) > 1e-6


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_crop_clamps_at_its_own_border(backend):
    """What lies outside the crop, next to its border, must not be seen."""
    size = (8, 8)
    maps = torch.zeros(2, 8, 8, dtype=torch.float64)
    maps[:, 2:4, 2:4] = 1
    crop = CropFlip(*(torch.tensor([v, v]) for v in (2, 2, 2, 2)), torch.tensor([False, True]))
    flat = torch.ones(2, 8, 8, dtype=torch.float64)
    positives = stage(backend)(maps, flat, crop, size, 1e-8, "released")[2]
    assert_close(positives.double(), torch.ones(2, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_warp_that_sees_nothing(backend, objective):
    """Positive 0, no gradient to either map from it; its mean square is that of the unit map alone, 1 / (S_h * S_w)."""
    maps = random_maps(3, (4, 5))
    size = (9, 7)
    behind = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    shifted = torch.eye(3, dtype=torch.float64)
    shifted[0, 2] = 1000
    transform = torch.stack([torch.eye(3, dtype=torch.float64), shifted, behind])
    leaves = [m.clone().requires_grad_() for m in maps]
    _, _, positives = stage(backend)(*leaves, with_inverse(transform), size, 1e-8, objective)
    assert (positives[1:] == 0).all()
    assert positives[0] > 0.1
    grads = torch.autograd.grad(positives.sum(), leaves)
    for grad in grads:
        assert (grad[1:] == 0).all()
        assert (grad[0] != 0).any()
    if objective == "mse":
        loss = heatmap_loss(*leaves, transform, image_size=size, objective="mse", backend=backend)
        first = heatmap_loss(*(m[:1] for m in maps), transform[:1], image_size=size, objective="mse", backend=backend)
        assert_close(loss.detach(), (first + 2 / 63) / 3, 1e-12)
        for grad in torch.autograd.grad(loss, leaves):
            assert_close(grad[1:], torch.zeros_like(grad[1:]), 1e-12, floor=1e-2)


@pytest.mark.parametrize("backend", [CPP])
def test_crop_outside_the_view_reads_inside_it(backend):
    """The operator clamps addresses: what a caller without checks (a compiled graph) sends is never out of bounds."""
    maps = random_maps(4, (3, 4))
    crops = torch.tensor(
        [[-5, -7, 3, 4, 0], [100, 90, 5, 6, 1], [2, 2, 0, -3, 0], [0, 0, 2**62, 2**62, 1]], dtype=torch.int64
    )
    outputs = torch.ops.cgc_kernels.resample(*maps, list(crops.unbind(1)), 9, 8, 1e-8, 0)
    for output in outputs:
        assert output.isfinite().all()
        assert output.abs().max() < 1e4


@pytest.mark.parametrize("module", ["geometry", "warp"])
@pytest.mark.parametrize("chunk", [1, 200, 5000])
def test_chunks_of_torch_change_nothing(monkeypatch, module, chunk):
    generator = torch.Generator().manual_seed(5)
    maps = random_maps(7, (4, 5))
    make, kinds = (crop_flip, ("any", "pixel", "full")) if module == "geometry" else (warp, ("affine", "homography"))
    transform = make(generator, (10, 9), [kinds[i % len(kinds)] for i in range(7)])
    upstream = torch.randn(7, 8, generator=generator, dtype=torch.float64)
    case = (*maps, with_inverse(transform), (10, 9), 1e-8, "paper", upstream)
    whole = similarities_and_grads("torch", *case)
    monkeypatch.setattr(import_module(f"cgc_kernels.backends.torch.resample_{module}"), "CHUNK_ELEMENTS", chunk)
    parts = similarities_and_grads("torch", *case)
    for part, expected in zip((parts[0], *parts[1]), (whole[0], *whole[1]), strict=True):
        assert_close(part, expected, 1e-13)


@pytest.mark.parametrize("backend", [CPP])
def test_outputs_are_the_fake_ones(backend):
    """float64 positives, rows in the heatmaps' dtype; empty rows for mse."""
    for dtype in (torch.float32, torch.float64):
        maps = random_maps(2, (3, 4), dtype=dtype)
        transform = CropFlip.identity(2, 8)
        rows, keys, positives = stage(backend)(*maps, transform, (8, 8), 1e-8, "released")
        assert (rows.dtype, keys.dtype, positives.dtype) == (dtype, dtype, torch.float64)
        assert rows.shape == keys.shape == (2, 12)
        rows, keys, _ = stage(backend)(*maps, transform, (8, 8), 1e-8, "mse")
        assert rows.shape == keys.shape == (2, 0)


@pytest.mark.parametrize("backend", [CPP])
def test_reruns_are_equal_to_the_last_bit(backend):
    maps = random_maps(33, (5, 6), dtype=torch.float32)
    for kind in ("crop", "warp"):
        make, name = (crop_flip, "any") if kind == "crop" else (warp, "homography")
        transform = with_inverse(make(torch.Generator().manual_seed(0), (20, 21), [name] * 33))
        first = similarities_and_grads_32(backend, maps, transform)
        for _ in range(20):
            for output, expected in zip(similarities_and_grads_32(backend, maps, transform), first, strict=True):
                assert_same_bits(output, expected)


def similarities_and_grads_32(backend, maps, transform):
    leaves = [m.clone().requires_grad_() for m in maps]
    rows, keys, positives = stage(backend)(*leaves, transform, (20, 21), 1e-8, "released")
    grads = torch.autograd.grad((rows * keys).sum() + positives.sum(), leaves)
    return rows.detach(), keys.detach(), positives.detach(), *grads
