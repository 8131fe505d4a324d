"""Stage resample: heatmaps, transform -> unit rows and positives; the warps and crops against loops over pixels."""

import math
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgc_kernels import CropFlip, backends, gradcam, heatmap_loss
from cgc_kernels.backends.reference.resample import apply, fine_maps
from cgc_kernels.options import NEAR_DEAD_SUM, OBJECTIVES, contrasts
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


def stage(backend):
    return backends.choose(backend, torch.device("cpu")).resample


def random_maps(batch, side, seed=0, dtype=torch.float64):
    return torch.rand(2, batch, *side, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.05


# ---- The reference itself, against loops


def bilinear(m, y, x):
    """Value at fractional position (y, x) of a nested list, clamped to its border."""
    height, width = len(m), len(m[0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    i, j = int(y), int(x)
    k, n = min(i + 1, height - 1), min(j + 1, width - 1)
    b, a = y - i, x - j
    return (m[i][j] * (1 - a) + m[i][n] * a) * (1 - b) + (m[k][j] * (1 - a) + m[k][n] * a) * b


def resize(m, height, width):
    """align_corners=False: pixel centres at half-integers."""
    rows, columns = len(m), len(m[0])
    return [
        [bilinear(m, (y + 0.5) * rows / height - 0.5, (x + 0.5) * columns / width - 0.5) for x in range(width)]
        for y in range(height)
    ]


def normalised(heatmap, size, eps):
    up = resize(heatmap, *size)
    total = sum(map(sum, up))
    return [[v / (total + eps) + eps for v in row] for row in up]


def cropped(m, top, left, height, width, flip):
    crop = [row[left : left + width] for row in m[top : top + height]]
    out = resize(crop, len(m), len(m[0]))
    return [row[::-1] for row in out] if flip else out


def warped(m, matrix):
    """The sample at inverse(matrix) @ (x, y, 1), each tap outside counting as zero."""
    height, width = len(m), len(m[0])
    inverse = torch.linalg.inv(torch.tensor(matrix, dtype=torch.float64)).tolist()
    out = [[0.0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            u, v, depth = (row[0] * x + row[1] * y + row[2] for row in inverse)
            if depth <= 0:
                continue
            u, v = u / depth, v / depth
            for j in (math.floor(u), math.floor(u) + 1):
                for i in (math.floor(v), math.floor(v) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        out[y][x] += m[i][j] * (1 - abs(u - j)) * (1 - abs(v - i))
    return out


def cosine(a, b):
    a, b = ([v for row in m for v in row] for m in (a, b))
    norms = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(v * w for v, w in zip(a, b, strict=True)) / norms if norms else 0.0


def loss_by_loops(originals, augmented, transform, size, tau, objective, consistency, eps):
    """The definition, one number at a time."""
    a = [normalised(m, size, eps) for m in augmented]
    o = [normalised(m, size, eps) for m in originals]
    o = [cropped(m, *t) if len(t) == 5 else warped(m, t) for m, t in zip(o, transform, strict=True)]
    batch = range(len(a))
    pos = [cosine(a[i], o[i]) for i in batch]
    if objective == "mse":
        unit = [[[v / (cosine_norm(m) or 1) for v in row] for row in m] for m in (*a, *o)]
        pairs = zip(unit[: len(a)], unit[len(a) :], strict=True)
        total = sum(
            (p - q) ** 2 for m, n in pairs for r, s in zip(m, n, strict=True) for p, q in zip(r, s, strict=True)
        )
        loss = total / (len(a) * size[0] * size[1])
    else:
        left = a if objective == "released" else o
        logits = [[(pos[i] if i == j else cosine(left[i], a[j])) / tau for j in batch] for i in batch]
        loss = sum(math.log(sum(math.exp(v) for v in row)) - row[i] for i, row in enumerate(logits)) / len(a)
    return loss + consistency * sum(1 - p for p in pos) / len(a)


def cosine_norm(m):
    return math.sqrt(sum(v * v for row in m for v in row))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["crop", "warp"])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_equals_loops_over_pixels(backend, kind, objective):
    """The oracle's oracle: for what the released code's outputs do not show (warps, paper, odd and small sizes)."""
    generator = torch.Generator().manual_seed(7)
    for side, size in [((3, 2), (5, 8)), ((4, 5), (3, 2)), ((1, 3), (6, 5)), ((3, 3), (9, 9)), ((2, 2), (1, 4))]:
        batch = 6
        maps = random_maps(batch, side, seed=sum(size))
        if kind == "crop":
            transform = crop_flip(generator, size, ["any", "pixel", "full", "border", "row", "column"])
            listed = [[int(v) for v in row] for row in zip(*transform, strict=True)]
        else:
            transform = warp(generator, size, ["affine", "mirror", "identity", "homography", "horizon", "blind"])
            listed = transform.tolist()
        settings = {"temperature": 0.3, "objective": objective, "consistency": 0.7, "eps": 1e-3}
        loss = heatmap_loss(*maps, transform, image_size=size, backend=backend, **settings)
        expected = loss_by_loops(*maps.tolist(), listed, size, 0.3, objective, 0.7, 1e-3)
        assert_close(loss, torch.tensor(expected, dtype=torch.float64), 1e-11, what=f"{side} {size}")


def test_reference_crop_against_loops():
    m = random_maps(1, (6, 7))[0]
    for box in [(0, 0, 6, 7, 0), (2, 3, 1, 1, 0), (1, 2, 3, 5, 1), (5, 6, 1, 1, 1), (0, 3, 6, 1, 0)]:
        crop = CropFlip(*(torch.tensor([v]) for v in box[:4]), torch.tensor([bool(box[4])]))
        assert_close(
            apply(m, crop)[0], torch.tensor(cropped(m[0].tolist(), *box), dtype=torch.float64), 1e-13, what=str(box)
        )


# ---- Backends against the reference


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
    seen = apply(fine[0], transform), fine[1]
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
