"""Stage resample: heatmaps, transform -> unit rows, keys and positives, one program a sample.

Arithmetic is float64 for float64 maps and for mse, whose 1 - positive cancels; float32 otherwise, but for the forward
of maps beyond 16 x 16: float32 products take no tensor core, and hold whole rows of 32 in registers they do not have.
"""

import functools

import torch
import triton
import triton.language as tl

from ....ops.resample import fake_rows
from ....options import NEAR_DEAD_SUM, OBJECTIVES
from .geometry import crop_products, sandwich, upsampling, warped
from .launch import REGISTERS, STEP, WARPS, check_map, padded, small, triton_dtype

RELEASED, PAPER, MSE = (tl.constexpr(i) for i in range(len(OBJECTIVES)))
NEAR_DEAD = tl.constexpr(NEAR_DEAD_SUM)
# The fields of a crop begin anywhere: code for each case would be compiled anew, for the sake of five numbers.
CROP_FIELDS = ("top", "left", "crop_height", "crop_width", "flip")


@triton.jit
def exactly(value, D: tl.constexpr):
    """A float64 argument of a kernel as a tensor [1] of type D."""
    return (tl.zeros([1], tl.float64) + value).to(D)


@triton.jit
def inverse_root(square):
    """1 / sqrt; 0 for a map that sees nothing, so that its cosine and its gradient are 0."""
    return tl.where(square == 0, 0, tl.rsqrt(tl.where(square == 0, 1, square)))


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


@triton.jit(do_not_specialize=["parts", "size_h", "size_w"], do_not_specialize_on_alignment=CROP_FIELDS)
def resample_kernel(
    maps, aug_maps, heatmaps, matrices, top, left, crop_height, crop_width, flip,
    rows, keys, positives, state, counter, parts, size_h, size_w, eps: tl.float64,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr,
    FROM_SUMS: tl.constexpr, CROP: tl.constexpr, OBJECTIVE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One sample, from its heatmaps or from the partial sums of stage cam, whose heatmaps are then stored."""
    step_h = 1 / size_h.to(tl.float64)
    step_w = 1 / size_w.to(tl.float64)
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

    gram_y, sums_y = upsampling(size_h, step_h, H, H2, STEP, D)
    gram_x, sums_x = upsampling(size_w, step_w, W, W2, STEP, D)
    share = sums_y[:, None] * sums_x[None, :]
    small = exactly(eps, D)
    original, _ = normalised(original, share, small, inside)
    augmented, _ = normalised(augmented, share, small, inside)
    if CROP:
        p_y, q_y, p_x, q_x = crop_products(
            sample, top, left, crop_height, crop_width, flip, size_h, size_w, step_h, step_w, H, W, H2, W2, STEP, D
        )
        seen = sandwich(p_y, original, tl.trans(p_x), D)
        seen_gram = sandwich(q_y, original, q_x, D)
        aug_seen = sandwich(tl.trans(p_y), augmented, p_x, D)
    else:
        seen, seen_gram, aug_seen = warped(
            original, augmented, matrices + sample * 9, size_h, size_w, step_h, step_w, False, H, W, H2, W2, STEP, D
        )
    # Only now: what a product holds of the map would otherwise stay in registers through the loops above.
    image = sandwich(gram_y, augmented, gram_x, D)

    aug_scale = inverse_root(dot(augmented, image))
    seen_scale = inverse_root(dot(original, seen_gram))
    tl.store(positives + sample, (dot(augmented, seen) * aug_scale * seen_scale).to(tl.float64))
    state += sample * 3 * P
    tl.store(state + place, seen.to(state.dtype.element_ty), mask=inside)
    tl.store(state + P + place, seen_gram.to(state.dtype.element_ty), mask=inside)
    tl.store(state + 2 * P + place, aug_seen.to(state.dtype.element_ty), mask=inside)
    if OBJECTIVE == RELEASED:
        tl.store(rows + sample * P + place, augmented * aug_scale, mask=inside)
        tl.store(keys + sample * P + place, image * aug_scale, mask=inside)
    if OBJECTIVE == PAPER:
        tl.store(rows + sample * P + place, seen * seen_scale, mask=inside)
        tl.store(keys + sample * P + place, augmented * aug_scale, mask=inside)


@triton.jit
def map_gradient(
    view, sample, heatmaps, aug_heatmaps, matrices, top, left, crop_height, crop_width, flip,
    state, grad_rows, grad_keys, grad_positive, size_h, size_w, eps,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr,
    CROP: tl.constexpr, OBJECTIVE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradient [H2, W2] of one view's heatmap (docs/mathematics.md, section 3).

    grad_positive: float64, of this sample's positive; eps: [1] of type D.
    """
    step_h = 1 / size_h.to(tl.float64)
    step_w = 1 / size_w.to(tl.float64)
    P: tl.constexpr = H * W
    y = tl.arange(0, H2)[:, None]
    x = tl.arange(0, W2)[None, :]
    inside = (y < H) & (x < W)
    place = y * W + x
    heatmap = tl.load(heatmaps + sample * P + place, mask=inside, other=0).to(D)
    aug_heatmap = tl.load(aug_heatmaps + sample * P + place, mask=inside, other=0).to(D)
    gram_y, sums_y = upsampling(size_h, step_h, H, H2, STEP, D)
    gram_x, sums_x = upsampling(size_w, step_w, W, W2, STEP, D)
    share = sums_y[:, None] * sums_x[None, :]
    original, total = normalised(heatmap, share, eps, inside)
    augmented, aug_total = normalised(aug_heatmap, share, eps, inside)
    image = sandwich(gram_y, augmented, gram_x, D)
    state += sample * 3 * P
    seen = tl.load(state + place, mask=inside, other=0).to(D)
    seen_gram = tl.load(state + P + place, mask=inside, other=0).to(D)
    aug_scale = inverse_root(dot(augmented, image))
    seen_scale = inverse_root(dot(original, seen_gram))
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
                p_y, _, p_x, _ = crop_products(
                    sample, top, left, crop_height, crop_width, flip, size_h, size_w, step_h, step_w,
                    H, W, H2, W2, STEP, D,
                )  # fmt: skip
                arriving += sandwich(tl.trans(p_y), upstream, p_x, D)
            else:
                _, _, back = warped(
                    upstream, upstream, matrices + sample * 9, size_h, size_w, step_h, step_w, True,
                    H, W, H2, W2, STEP, D,
                )  # fmt: skip
                arriving += back
        grad = seen_scale * (arriving - radial * seen_scale * seen_gram)
    else:
        arriving = grad_positive * seen_scale * seen
        if OBJECTIVE != MSE:
            keys = tl.load(grad_keys + sample * P + place, mask=inside, other=0).to(D)
            if OBJECTIVE == RELEASED:
                rows = tl.load(grad_rows + sample * P + place, mask=inside, other=0).to(D)
                radial += aug_scale * (dot(rows, augmented) + dot(keys, image))
                arriving += rows + sandwich(gram_y, keys, gram_x, D)
            else:
                radial += aug_scale * dot(keys, augmented)
                arriving += keys
        grad = aug_scale * (arriving - radial * aug_scale * image)
        heatmap = aug_heatmap
        total = aug_total

    inner = dot(grad, heatmap) / (total + eps)
    divisor = tl.where(total < NEAR_DEAD, NEAR_DEAD, total + eps)
    return tl.where(inside, (grad - inner * share) / divisor, 0)


@triton.jit
def mean_square_gradient(positive, grad_loss, batch, pixels, consistency):
    """Gradient of a positive of the mse objective; a cosine above 1 counts as 1."""
    share = -2 * grad_loss / (batch * pixels)
    return tl.where(positive > 1, 0.0, share) - consistency * grad_loss / batch


@triton.jit(do_not_specialize=["size_h", "size_w"], do_not_specialize_on_alignment=CROP_FIELDS)
def resample_backward_kernel(
    grad_rows, grad_keys, grad_positives, grad_loss, positives, heatmaps, aug_heatmaps,
    matrices, top, left, crop_height, crop_width, flip, state, grad_heatmaps, grad_aug_heatmaps,
    size_h, size_w, eps: tl.float64, consistency: tl.float64,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr,
    CROP: tl.constexpr, OBJECTIVE: tl.constexpr, D: tl.constexpr, FROM_LOSS: tl.constexpr,
):  # fmt: skip
    """One view of one sample. FROM_LOSS: the positives' gradient is that of the mse objective, of grad_loss."""
    sample = tl.program_id(0).to(tl.int64)
    view = tl.program_id(1)
    if FROM_LOSS:
        grad_positive = mean_square_gradient(
            tl.load(positives + sample), tl.load(grad_loss).to(tl.float64), tl.num_programs(0),
            size_h.to(tl.float64) * size_w, consistency,
        )  # fmt: skip
    else:
        grad_positive = tl.load(grad_positives + sample)
    grad = map_gradient(
        view, sample, heatmaps, aug_heatmaps, matrices, top, left, crop_height, crop_width, flip,
        state, grad_rows, grad_keys, grad_positive, size_h, size_w, exactly(eps, D),
        H, W, H2, W2, STEP, CROP, OBJECTIVE, D,
    )  # fmt: skip
    if view == 1:
        grad_heatmaps = grad_aug_heatmaps
    y = tl.arange(0, H2)[:, None]
    x = tl.arange(0, W2)[None, :]
    target = grad_heatmaps + sample * (H * W) + y * W + x
    tl.store(target, grad.to(grad_heatmaps.dtype.element_ty), mask=(y < H) & (x < W))


def pointers(transform: list[torch.Tensor]) -> list[torch.Tensor]:
    """What the kernels take for a transform: matrices, and the five fields of a crop; one of them stands for the rest
    where there is no other."""
    return transform * 6 if len(transform) == 1 else [transform[0], *(field.contiguous() for field in transform)]


@functools.cache
def constants(height: int, width: int, crop: bool, objective: int, dtype: torch.dtype, forward: bool = False) -> dict:
    """Compile-time arguments of the kernels; not to be changed."""
    double = objective == MSE.value or dtype == torch.float64 or (forward and not small(height, width))
    return {
        "H": height,
        "W": width,
        "H2": padded(height),
        "W2": padded(width),
        "STEP": STEP,
        "CROP": crop,
        "OBJECTIVE": objective,
        "D": triton_dtype(torch.float64 if double else torch.float32),
    }


def resample_maps(values, aug_values, heatmaps, parts, side, transform, size, eps, objective, counter, outputs):
    """Launch the forward; outputs: rows, keys, positives, state.

    heatmaps: where to store them, or None if `values` are heatmaps themselves, `parts` is 1.
    """
    resample_kernel[(len(outputs[2]),)](
        values, aug_values, values if heatmaps is None else heatmaps, *pointers(transform), *outputs, counter,
        parts, *size, eps, FROM_SUMS=heatmaps is not None,
        **constants(*side, len(transform) > 1, objective, values.dtype, forward=True),
        num_warps=4 if small(*side) else WARPS, maxnreg=REGISTERS,
    )  # fmt: skip


def resample(heatmaps, aug_heatmaps, transform, height, width, eps, objective):
    """Kernel of operator resample."""
    side = heatmaps.shape[1:]
    check_map(*side)
    outputs = fake_rows(heatmaps, objective)
    unused = heatmaps.new_empty(1, dtype=torch.int32)
    resample_maps(heatmaps, aug_heatmaps, None, 1, side, transform, (height, width), eps, objective, unused, outputs)
    return outputs


def resample_backward(
    grad_rows, grad_keys, grad_positives, heatmaps, aug_heatmaps, rows, keys, positives, transform, state,
    height, width, eps, objective,
):  # fmt: skip
    """Kernel of operator resample_backward."""
    grads = torch.empty_like(heatmaps), torch.empty_like(aug_heatmaps)
    upstream = grad_rows, grad_keys, grad_positives, grad_positives, positives
    maps_backward(upstream, (heatmaps, aug_heatmaps), transform, state, grads, (height, width), eps, 0.0, objective)
    return grads


def maps_backward(upstream, heatmaps, transform, state, grads, size, eps, consistency, objective, from_loss=False):
    """Launch the backward of both views' heatmaps [B, H, W], into `grads`.

    upstream: gradients of rows, keys and positives, and grad_loss and positives, which `from_loss` reads instead.
    """
    batch, *side = heatmaps[0].shape
    resample_backward_kernel[(batch, 2)](
        *upstream, *heatmaps, *pointers(transform), state, *grads, *size, eps, consistency, FROM_LOSS=from_loss,
        **constants(*side, len(transform) > 1, objective, heatmaps[0].dtype),
        num_warps=4 if small(*side) else WARPS, maxnreg=REGISTERS,
    )  # fmt: skip
