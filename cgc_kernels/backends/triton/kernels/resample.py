"""Stage resample: heatmaps, transform -> unit rows, keys and positives, one program a sample.

Arithmetic is float64 for float64 maps and for mse, whose 1 - positive cancels; float32 otherwise.
"""

import torch
import triton
import triton.language as tl

from ....ops.resample import fake_rows
from ....options import NEAR_DEAD_SUM, OBJECTIVES
from .geometry import cropping, product, upsampling, warped
from .launch import check_map, maps, on_device_of, triton_dtype

RELEASED, PAPER, MSE = (tl.constexpr(i) for i in range(len(OBJECTIVES)))
NEAR_DEAD = tl.constexpr(NEAR_DEAD_SUM)


@triton.jit
def exactly(value, D: tl.constexpr):
    """A float64 argument of a kernel as a tensor [1] of type D."""
    return (tl.zeros([1], tl.float64) + value).to(D)


@triton.jit
def inverse_root(square, D: tl.constexpr):
    """1 / sqrt; 0 for a map that sees nothing, so that its cosine and its gradient are 0."""
    exact = square.to(tl.float64)
    return tl.where(exact == 0, 0.0, 1 / tl.sqrt(tl.where(exact == 0, 1.0, exact))).to(D)


@triton.jit
def load_map(maps, place, inside, parts, P: tl.constexpr, FROM_SUMS: tl.constexpr, D: tl.constexpr):
    """A heatmap [H2, W2]: stored as it is, or the ReLU of `parts` partial sums, which lets NaN through."""
    if FROM_SUMS:
        total = tl.load(maps + place, mask=inside, other=0)
        for part in range(1, parts):
            total += tl.load(maps + part * P + place, mask=inside, other=0)
        return tl.where(total < 0, 0, total).to(D)
    return tl.load(maps + place, mask=inside, other=0).to(D)


@triton.jit
def normalised(heatmap, share, eps, inside):
    """m = M / (s + eps) + eps, and s, the sum of the upsampled map, [1]."""
    total = tl.sum(tl.sum(heatmap * share, axis=1), axis=0)
    return tl.where(inside, heatmap / (total + eps) + eps, 0), total


@triton.jit
def dot(a, b):
    return tl.sum(tl.sum(a * b, axis=1), axis=0)


@triton.jit(do_not_specialize=["parts", "size_h", "size_w"])
def resample_kernel(
    maps, aug_maps, heatmaps, transform, rows, keys, positives, state, counter, parts, size_h, size_w, eps: tl.float64,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr,
    FROM_SUMS: tl.constexpr, CROP: tl.constexpr, OBJECTIVE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One sample, from its heatmaps or from the partial sums of stage cam, whose heatmaps are then stored."""
    P: tl.constexpr = H * W
    sample = tl.program_id(0).to(tl.int64)
    if sample == 0:
        tl.store(counter, 0)
    y = tl.arange(0, H2)[:, None]
    x = tl.arange(0, W2)[None, :]
    inside = (y < H) & (x < W)
    place = y * W + x
    original = load_map(maps + sample * parts * P, place, inside, parts, P, FROM_SUMS, D)
    augmented = load_map(aug_maps + sample * parts * P, place, inside, parts, P, FROM_SUMS, D)
    if FROM_SUMS:
        tl.store(heatmaps + sample * P + place, original, mask=inside)
        tl.store(heatmaps + (tl.num_programs(0) + sample) * P + place, augmented, mask=inside)

    gram_y, sums_y = upsampling(size_h, H, H2, STEP, D)
    gram_x, sums_x = upsampling(size_w, W, W2, STEP, D)
    share = sums_y[:, None] * sums_x[None, :]
    small = exactly(eps, D)
    original, _ = normalised(original, share, small, inside)
    augmented, _ = normalised(augmented, share, small, inside)
    image = product(product(gram_y, augmented, D), gram_x, D)
    if CROP:
        crop = transform + sample * 5
        p_y, q_y = cropping(size_h, tl.load(crop), tl.load(crop + 2), 0 * tl.load(crop), H, H2, STEP, D)
        seen = product(p_y, original, D)
        seen_gram = product(q_y, original, D)
        aug_seen = product(tl.trans(p_y), augmented, D)
        p_x, q_x = cropping(size_w, tl.load(crop + 1), tl.load(crop + 3), tl.load(crop + 4), W, W2, STEP, D)
        seen = product(seen, tl.trans(p_x), D)
        seen_gram = product(seen_gram, q_x, D)
        aug_seen = product(aug_seen, p_x, D)
    else:
        inverse = transform + sample * 9
        seen, seen_gram, aug_seen = warped(original, augmented, inverse, size_h, size_w, False, H, W, H2, W2, STEP, D)

    aug_scale = inverse_root(dot(augmented, image), D)
    seen_scale = inverse_root(dot(original, seen_gram), D)
    tl.store(positives + sample, (dot(augmented, seen) * aug_scale * seen_scale).to(tl.float64))
    state += sample * 3 * P
    tl.store(state + place, seen.to(tl.float64), mask=inside)
    tl.store(state + P + place, seen_gram.to(tl.float64), mask=inside)
    tl.store(state + 2 * P + place, aug_seen.to(tl.float64), mask=inside)
    if OBJECTIVE == RELEASED:
        tl.store(rows + sample * P + place, augmented * aug_scale, mask=inside)
        tl.store(keys + sample * P + place, image * aug_scale, mask=inside)
    if OBJECTIVE == PAPER:
        tl.store(rows + sample * P + place, seen * seen_scale, mask=inside)
        tl.store(keys + sample * P + place, augmented * aug_scale, mask=inside)


@triton.jit
def map_gradient(
    view, sample, heatmaps, aug_heatmaps, transform, state, grad_rows, grad_keys, grad_positive, size_h, size_w, eps,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr,
    CROP: tl.constexpr, OBJECTIVE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradient [H2, W2] of one view's heatmap (docs/mathematics.md, section 3), and the heatmap.

    grad_positive: float64, of this sample's positive; eps: [1] of type D.
    """
    P: tl.constexpr = H * W
    y = tl.arange(0, H2)[:, None]
    x = tl.arange(0, W2)[None, :]
    inside = (y < H) & (x < W)
    place = y * W + x
    heatmap = tl.load(heatmaps + sample * P + place, mask=inside, other=0).to(D)
    aug_heatmap = tl.load(aug_heatmaps + sample * P + place, mask=inside, other=0).to(D)
    gram_y, sums_y = upsampling(size_h, H, H2, STEP, D)
    gram_x, sums_x = upsampling(size_w, W, W2, STEP, D)
    share = sums_y[:, None] * sums_x[None, :]
    original, total = normalised(heatmap, share, eps, inside)
    augmented, aug_total = normalised(aug_heatmap, share, eps, inside)
    image = product(product(gram_y, augmented, D), gram_x, D)
    state += sample * 3 * P
    seen = tl.load(state + place, mask=inside, other=0).to(D)
    seen_gram = tl.load(state + P + place, mask=inside, other=0).to(D)
    aug_scale = inverse_root(dot(augmented, image), D)
    seen_scale = inverse_root(dot(original, seen_gram), D)
    grad_positive = grad_positive.to(D)
    radial = grad_positive * dot(augmented, seen) * aug_scale * seen_scale

    # Of the map: what arrives at it, less its share along the map itself, whose length does not count.
    if view == 0:
        aug_seen = tl.load(state + 2 * P + place, mask=inside, other=0).to(D)
        arriving = grad_positive * aug_scale * aug_seen
        if OBJECTIVE == PAPER:
            upstream = tl.load(grad_rows + sample * P + place, mask=inside, other=0).to(D)
            radial += seen_scale * dot(upstream, seen)
            if CROP:
                crop = transform + sample * 5
                p_y, _ = cropping(size_h, tl.load(crop), tl.load(crop + 2), 0 * tl.load(crop), H, H2, STEP, D)
                p_x, _ = cropping(size_w, tl.load(crop + 1), tl.load(crop + 3), tl.load(crop + 4), W, W2, STEP, D)
                arriving += product(product(tl.trans(p_y), upstream, D), p_x, D)
            else:
                inverse = transform + sample * 9
                _, _, back = warped(upstream, upstream, inverse, size_h, size_w, True, H, W, H2, W2, STEP, D)
                arriving += back
        grad = seen_scale * (arriving - radial * seen_scale * seen_gram)
    else:
        arriving = grad_positive * seen_scale * seen
        if OBJECTIVE != MSE:
            keys = tl.load(grad_keys + sample * P + place, mask=inside, other=0).to(D)
            if OBJECTIVE == RELEASED:
                rows = tl.load(grad_rows + sample * P + place, mask=inside, other=0).to(D)
                radial += aug_scale * (dot(rows, augmented) + dot(keys, image))
                arriving += rows + product(product(gram_y, keys, D), gram_x, D)
            else:
                radial += aug_scale * dot(keys, augmented)
                arriving += keys
        grad = aug_scale * (arriving - radial * aug_scale * image)
        heatmap = aug_heatmap
        total = aug_total

    inner = dot(grad, heatmap) / (total + eps)
    divisor = tl.where(total < NEAR_DEAD, NEAR_DEAD, total + eps)
    return tl.where(inside, (grad - inner * share) / divisor, 0), heatmap


@triton.jit(do_not_specialize=["size_h", "size_w"])
def resample_backward_kernel(
    grad_rows, grad_keys, grad_positives, heatmaps, aug_heatmaps, transform, state, grad_heatmaps, grad_aug_heatmaps,
    size_h, size_w, eps: tl.float64,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr,
    CROP: tl.constexpr, OBJECTIVE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One view of one sample."""
    sample = tl.program_id(0).to(tl.int64)
    view = tl.program_id(1)
    grad, _ = map_gradient(
        view, sample, heatmaps, aug_heatmaps, transform, state, grad_rows, grad_keys, tl.load(grad_positives + sample),
        size_h, size_w, exactly(eps, D), H, W, H2, W2, STEP, CROP, OBJECTIVE, D,
    )  # fmt: skip
    if view == 1:
        grad_heatmaps = grad_aug_heatmaps
    y = tl.arange(0, H2)[:, None]
    x = tl.arange(0, W2)[None, :]
    target = grad_heatmaps + sample * (H * W) + y * W + x
    tl.store(target, grad.to(grad_heatmaps.dtype.element_ty), mask=(y < H) & (x < W))


def constants(height: int, width: int, transform: torch.Tensor, objective: int, dtype: torch.dtype) -> dict:
    """Compile-time arguments of the kernels, and the compiler's options."""
    crop = transform.dim() == 2
    double = OBJECTIVES[objective] == "mse" or dtype == torch.float64
    tile = maps(height, width, crop)
    return {
        "H": height,
        "W": width,
        "H2": tile.height,
        "W2": tile.width,
        "STEP": tile.step,
        "CROP": crop,
        "OBJECTIVE": objective,
        "D": triton_dtype(torch.float64 if double else torch.float32),
        "num_warps": tile.num_warps,
    }


def resample_maps(values, aug_values, heatmaps, parts, transform, size, eps, objective, counter):
    """Launch the forward; heatmaps: where to store them, or None if `values` are heatmaps themselves, `parts` is 1."""
    like = values if heatmaps is None else heatmaps[0]
    batch, height, width = like.shape
    rows, keys, positives, state = fake_rows(like, objective)
    with on_device_of(values):
        resample_kernel[(batch,)](
            values, aug_values, values if heatmaps is None else heatmaps, transform,
            rows, keys, positives, state, counter, parts, *size, eps, FROM_SUMS=heatmaps is not None,
            **constants(height, width, transform, objective, values.dtype),
        )  # fmt: skip
    return rows, keys, positives, state


def resample(heatmaps, aug_heatmaps, transform, height, width, eps, objective):
    """Kernel of operator resample."""
    check_map(*heatmaps.shape[1:])
    unused = heatmaps.new_empty(1, dtype=torch.int32)
    return resample_maps(heatmaps, aug_heatmaps, None, 1, transform, (height, width), eps, objective, unused)


def resample_backward(
    grad_rows, grad_keys, grad_positives, heatmaps, aug_heatmaps, transform, state, height, width, eps, objective
):
    """Kernel of operator resample_backward."""
    grads = torch.empty_like(heatmaps), torch.empty_like(aug_heatmaps)
    with on_device_of(heatmaps):
        resample_backward_kernel[(len(heatmaps), 2)](
            grad_rows, grad_keys, grad_positives, heatmaps, aug_heatmaps, transform, state, *grads, height, width, eps,
            **constants(*heatmaps.shape[1:], transform, objective, heatmaps.dtype),
        )  # fmt: skip
    return grads
