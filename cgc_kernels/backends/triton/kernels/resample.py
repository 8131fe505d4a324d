"""Stage resample: heatmaps, transform -> unit rows, keys and positives, one program a sample.

Arithmetic is float64 for float64 maps and for mse, whose 1 - positive cancels; float32 otherwise. A sample's maps are
tiles [2, H, W], of the original view and of the augmented one. What the backward starts from are the images of the unit
maps, as the forward left them: the fused backward of the released objective looks at no pixel again.
"""

import torch
import triton
import triton.language as tl

from ....ops.resample import empty_outputs
from ....options import NEAR_DEAD_SUM, OBJECTIVES
from .geometry import cell_sums, crop_products, position_unit, sandwich, warped
from .launch import Launch, check_map, kind, padded, plans, resampling, triton_dtype
from .tiles import both, chosen, exactly, inner, inverse_root, of_view, places, spread

RELEASED, PAPER, MSE = (tl.constexpr(i) for i in range(len(OBJECTIVES)))
NEAR_DEAD = tl.constexpr(NEAR_DEAD_SUM)
# A crop or its matrices begin anywhere: code for each case would be compiled anew, for the sake of a few numbers.
TRANSFORM = ("top", "left", "crop_height", "crop_width", "flip")
INTEGERS = ("parts", "size_h", "size_w")
# Pixels that the sum of an upsampled axis takes at once.
SUM_STEP = tl.constexpr(128)


@triton.jit
def shares(
    size_h, size_w, unit_h, unit_w,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """What each cell adds to the sum of an upsampled map, [1, H2, W2]."""
    sums_y = cell_sums(size_h, unit_h, H, H2, SUM_STEP, D)
    sums_x = cell_sums(size_w, unit_w, W, W2, SUM_STEP, D)
    return sums_y[None, :, None] * sums_x[None, None, :]


@triton.jit
def normalised(heatmaps, share, eps, inside):
    """m = M / (s + eps) + eps, and s, the sums of the upsampled maps, [2]."""
    total = inner(heatmaps, share)
    return tl.where(inside, heatmaps / spread(total + eps) + eps, 0), total


@triton.jit(do_not_specialize=INTEGERS, do_not_specialize_on_alignment=TRANSFORM)
def resample_kernel(
    maps, aug_maps, heatmaps, top, left, crop_height, crop_width, flip, rows, keys, positives, state, counter,
    eps: tl.float64, parts, size_h, size_w,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr,
    FROM_SUMS: tl.constexpr, STRIDES: tl.constexpr, OBJECTIVE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One sample, from its heatmaps or from the partial sums of stage cam, whose heatmaps are then stored; both views'
    lie in one tensor then, `maps` and `aug_maps`.

    Without STRIDES there is no crop, and `top` are the inverse matrices [B, 3, 3] of warps.
    """
    P: tl.constexpr = H * W
    unit_h = position_unit(size_h, D)
    unit_w = position_unit(size_w, D)
    sample = tl.program_id(0).to(tl.int64)
    if sample == 0:
        tl.store(counter, 0)
    share = shares(size_h, size_w, unit_h, unit_w, H, W, H2, W2, D)
    along_y, along_x = crop_products(
        sample, top, left, crop_height, crop_width, flip, size_h, size_w, unit_h, unit_w,
        H, W, H2, W2, STEP, STRIDES, D,
    )  # fmt: skip
    place, inside = places(H, W, H2, W2)
    view = tl.arange(0, 2)[:, None, None]
    if FROM_SUMS:
        aug_maps += tl.num_programs(0).to(tl.int64) * parts * P
    source = tl.where(view == 0, maps, aug_maps) + sample * parts * P + place
    total = tl.load(source, mask=inside, other=0)
    if FROM_SUMS:
        for part in range(1, parts):
            total += tl.load(source + part * P, mask=inside, other=0)
        total = tl.where(total < 0, 0, total)  # which lets NaN through
        tl.store(heatmaps + (view * tl.num_programs(0) + sample) * P + place, total, mask=inside)
    m, _ = normalised(total.to(D), share, exactly(eps, D), inside)
    o = of_view(m, 0)
    a = of_view(m, 1)
    of_original = tl.zeros([2, H2, W2], D)
    of_augmented = tl.zeros([2, H2, W2], D)
    for pair in range(0, 4):  # one after the other, lest registers spill
        one = chosen(pair, along_y[0], along_y[2], along_y[1], along_y[3])
        other = chosen(pair, along_x[0], along_x[1], along_x[2], along_x[3])
        image = sandwich(one, tl.where(pair < 2, o, a), other, D)[None, :, :]
        of_original = tl.where(view == pair, image, of_original)
        of_augmented = tl.where(view == pair - 2, image, of_augmented)
    if STRIDES is None:
        # The length of the original does not count: lifted, the squares of a near-blind view stay in float32's range.
        m = tl.where(view == 0, m * tl.minimum(1 / exactly(eps, D), 1e15), m)
        gram, seen, adjoint = warped(
            of_view(m, 0), a, top + sample * 9, size_h, size_w, unit_h, unit_w, False, H, W, H2, W2, STEP, D
        )
        of_original = both(gram, seen)
        of_augmented = tl.where(view == 0, adjoint[None, :, :], of_augmented)

    products = inner(m, of_original)  # <o, o> and <a, o> of the fine maps
    index = tl.arange(0, 2)
    scale = inverse_root(tl.sum(tl.where(index == 0, products, 0), axis=0))
    aug_scale = inverse_root(tl.sum(tl.where(index == 1, inner(m, of_augmented), 0), axis=0))
    cosine = tl.sum(tl.where(index == 1, products, 0), axis=0) * scale * aug_scale
    tl.store(positives + sample, cosine.to(tl.float64))
    of_original *= scale
    of_augmented *= aug_scale
    slot = state + sample * 3 * P + place
    dtype: tl.constexpr = state.dtype.element_ty
    # One of the images is a row, or a key: three are left.
    tl.store(slot + 2 * view * P, of_original.to(dtype), mask=inside & ((OBJECTIVE != PAPER) | (view == 0)))
    tl.store(slot + (1 + view) * P, of_augmented.to(dtype), mask=inside & ((OBJECTIVE == PAPER) | (view == 0)))
    if OBJECTIVE != MSE:
        place = sample * P + place + 0 * view
        inside &= view == 1
        tl.store((keys if OBJECTIVE == PAPER else rows) + place, m * aug_scale, mask=inside)
        if OBJECTIVE == PAPER:
            tl.store(rows + place, of_original, mask=inside)
        else:
            tl.store(keys + place, of_augmented, mask=inside)


@triton.jit
def mean_square_gradient(grad_loss, batch, pixels, consistency):
    """Gradient of every positive of the mse objective."""
    return (-2 / pixels - consistency) * grad_loss / batch


@triton.jit
def load_view(pointer, inside, view, WHICH: tl.constexpr, D: tl.constexpr):
    """A map of one view, [2, H2, W2], zero for the other one."""
    return tl.load(pointer + 0 * view, mask=inside & (view == WHICH), other=0).to(D)


@triton.jit(do_not_specialize=INTEGERS, do_not_specialize_on_alignment=TRANSFORM)
def resample_backward_kernel(
    grad_rows, grad_keys, grad_positives, grad_loss, heatmaps, aug_heatmaps,
    top, left, crop_height, crop_width, flip, rows, keys, positives, state, grad_heatmaps, grad_aug_heatmaps,
    eps: tl.float64, consistency: tl.float64, size_h, size_w,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr,
    FUSED: tl.constexpr, STRIDES: tl.constexpr, OBJECTIVE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One sample (docs/mathematics.md, section 3).

    FUSED: in the fused loss, where both views' heatmaps lie in one tensor, as their gradients do; the released
    objective's grad_rows hold what comes by way of the keys, too; the gradient of mse's positives is that of grad_loss.
    """
    P: tl.constexpr = H * W
    if FUSED:
        aug_heatmaps += tl.num_programs(0).to(tl.int64) * P
        grad_aug_heatmaps += tl.num_programs(0).to(tl.int64) * P
    unit_h = position_unit(size_h, D)
    unit_w = position_unit(size_w, D)
    sample = tl.program_id(0).to(tl.int64)
    share = shares(size_h, size_w, unit_h, unit_w, H, W, H2, W2, D)
    if not (FUSED and OBJECTIVE == RELEASED):
        along_y, along_x = crop_products(
            sample, top, left, crop_height, crop_width, flip, size_h, size_w, unit_h, unit_w,
            H, W, H2, W2, STEP, STRIDES, D,
        )  # fmt: skip
    first, inside = places(H, W, H2, W2)
    view = tl.arange(0, 2)[:, None, None]
    place = sample * P + first + 0 * view  # of either view: the same
    slot = state + sample * 3 * P + first
    small = exactly(eps, D)
    heatmap = tl.load(tl.where(view == 0, heatmaps, aug_heatmaps) + place, mask=inside, other=0).to(D)
    m, total = normalised(heatmap, share, small, inside)
    if FUSED and OBJECTIVE == MSE:
        grad_positive = mean_square_gradient(
            tl.load(grad_loss).to(tl.float64), tl.num_programs(0), size_h.to(tl.float64) * size_w, consistency
        )
    else:
        grad_positive = tl.load(grad_positives + sample)

    # Of the unit map of each view its own image, that of the other one, and what arrives at it. `through` goes on as
    # P^T x P to the original map, as K x K to the augmented one.
    if OBJECTIVE == PAPER:
        image = tl.load(slot + 2 * view * P, mask=inside, other=0).to(D)
        other = load_view(slot + P, inside, view, 0, D) + load_view(rows + place, inside, view, 1, D)
        arriving = load_view(grad_keys + place, inside, view, 1, D)
        through = tl.load(grad_rows + place, mask=inside, other=0).to(D)
    else:
        image = load_view(slot, inside, view, 0, D)
        other = tl.load(slot + (1 + view) * P, mask=inside, other=0).to(D)
        if OBJECTIVE == RELEASED:
            image += load_view(keys + place, inside, view, 1, D)
            arriving = load_view(grad_rows + place, inside, view, 1, D)
            if not FUSED:
                through = tl.load(grad_keys + place, mask=inside, other=0).to(D)
        else:
            arriving = tl.zeros([2, H2, W2], D)
            through = m
    if not (FUSED and OBJECTIVE == RELEASED):
        x = of_view(through, 1)
        if OBJECTIVE != PAPER:
            passed = sandwich(along_y[3], x, along_x[3], D)
        elif STRIDES is None:
            at = top + sample * 9
            _, _, passed = warped(x, x, at, size_h, size_w, unit_h, unit_w, True, H, W, H2, W2, STEP, D)
        else:
            passed = sandwich(along_y[1], x, along_x[2], D)
        passed = tl.where(view == (0 if OBJECTIVE == PAPER else 1), passed[None, :, :], 0)
        if OBJECTIVE == MSE:
            image += passed * spread(inverse_root(inner(m, passed)))
        else:
            arriving += passed
    arriving += grad_positive.to(D) * other

    # Less its share along the map itself, whose length does not count, damped where the view is near-blind, of a length
    # below eps; then through the normalisation.
    length = inner(m, image)
    scale = tl.where(length == 0, 0, 1 / length)
    damped = tl.where(length < small, tl.where(length == 0, 0, 1 / small), scale)
    grad = spread(damped) * (arriving - spread(inner(arriving, m) * scale) * image)
    along = inner(grad, heatmap) / (total + small)
    divisor = tl.where(total < NEAR_DEAD, NEAR_DEAD, total + small)
    grad = tl.where(inside, (grad - spread(along) * share) / spread(divisor), 0)
    target = tl.where(view == 0, grad_heatmaps, grad_aug_heatmaps) + place
    tl.store(target, grad.to(grad_heatmaps.dtype.element_ty), mask=inside)


def crop_strides(transform: list[torch.Tensor]) -> tuple[int, ...] | None:
    """Of the fields of a crop; None for matrices."""
    return None if len(transform) == 1 else tuple([field.stride(0) for field in transform])


def pointers(transform: list[torch.Tensor]) -> list[torch.Tensor]:
    """What the kernels take for a transform: the five fields of a crop, or the matrices in the place of each."""
    return transform * 5 if len(transform) == 1 else transform


def _launch(kernel, batch, side, size, strides, objective, dtype, **fixed):
    wide = objective == MSE.value or dtype == torch.float64
    tile = resampling(*side, strides is None, kernel is resample_kernel)
    fixed |= {"size_h": size[0], "size_w": size[1], "H": side[0], "W": side[1]}
    fixed |= {"H2": padded(side[0]), "W2": padded(side[1]), "STEP": tile.step}
    fixed |= {"STRIDES": strides, "OBJECTIVE": objective, "D": triton_dtype(torch.float64 if wide else torch.float32)}
    return Launch(kernel, (batch, 1, 1), tile.options, fixed)


def forward_launch(batch, side, size, strides, objective, dtype, parts=None) -> Launch:
    """Of maps [B, H, W], or, with parts, of as many partial sums of each."""
    check_map(*side)
    sums = {"parts": parts or 1, "FROM_SUMS": parts is not None}
    return _launch(resample_kernel, batch, side, size, strides, objective, dtype, **sums)


def backward_launch(batch, side, size, strides, objective, dtype, fused=False) -> Launch:
    """Of both views' heatmaps; fused: in the backward of the fused loss."""
    return _launch(resample_backward_kernel, batch, side, size, strides, objective, dtype, FUSED=fused)


_forward, _backward = plans(forward_launch), plans(backward_launch)


def resample(heatmaps, aug_heatmaps, transform, height, width, eps, objective):
    """Kernel of operator resample."""
    batch, *side = heatmaps.shape
    outputs = empty_outputs(heatmaps, objective)
    counter = heatmaps.new_empty(1, dtype=torch.int32)
    settings = batch, tuple(side), (height, width), crop_strides(transform), objective, heatmaps.dtype
    launch = _forward(kind(heatmaps, aug_heatmaps, *transform), *settings)
    launch(heatmaps, aug_heatmaps, heatmaps, *pointers(transform), *outputs, counter, eps)
    return outputs


def resample_backward(
    grad_rows, grad_keys, grad_positives, heatmaps, aug_heatmaps, rows, keys, positives, transform, state,
    height, width, eps, objective,
):  # fmt: skip
    """Kernel of operator resample_backward."""
    batch, *side = heatmaps.shape
    grads = torch.empty_like(heatmaps), torch.empty_like(aug_heatmaps)
    upstream, maps = (grad_rows, grad_keys, grad_positives), (heatmaps, aug_heatmaps)
    saved = rows, keys, positives, state
    settings = batch, tuple(side), (height, width), crop_strides(transform), objective, heatmaps.dtype
    launch = _backward(kind(*upstream, *maps, *transform, *saved), *settings)
    launch(*upstream, grad_positives, *maps, *pointers(transform), *saved, *grads, eps, 0.0)
    return grads
