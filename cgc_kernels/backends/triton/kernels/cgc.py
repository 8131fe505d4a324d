"""The three stages chained: three launches forward (cam; resample; contrast with the mean), two backward."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ....ops.cam import pools, wanted
from ....ops.cgc import saved_bytes
from ....options import accumulation_dtype
from .cam import partial_sums, relu_gradient, stream_gradients, tiling
from .contrast import contrast_gradients, contrast_loss, mean_square_loss
from .launch import REGISTERS, ceil_div, small
from .resample import CROP_FIELDS, MSE, constants, exactly, map_gradient, pointers, resample_maps

# A split repeats its sample's share of stage resample; that of a warp, over all pixels of a view, is worth few splits.
WARP_SPLITS = 4
# Registers of a thread of the backward of small maps: two blocks stay resident, whose loads fill the memory's pipeline.
STREAMING_REGISTERS = 128


@triton.jit
def mean_square_gradient(positive, grad_loss, batch, pixels, consistency):
    """Gradient of a positive of the mse objective; a cosine above 1 counts as 1."""
    share = -2 * grad_loss / (batch * pixels)
    return tl.where(positive > 1, 0.0, share) - consistency * grad_loss / batch


@triton.jit(do_not_specialize=["size_h", "size_w"], do_not_specialize_on_alignment=CROP_FIELDS)
def cgc_backward_kernel(
    grad_loss, grad_rows, grad_keys, grad_positives, positives, heatmaps,
    matrices, top, left, crop_height, crop_width, flip, state,
    features, gradients, aug_features, aug_gradients,
    grad_features, grad_gradients, grad_aug_features, grad_aug_gradients,
    channels, blocks, size_h, size_w, eps: tl.float64, consistency: tl.float64,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr,
    CROP: tl.constexpr, OBJECTIVE: tl.constexpr, COMPUTE: tl.constexpr,
    P: tl.constexpr, P2: tl.constexpr, BLOCK: tl.constexpr, NEEDS: tl.constexpr,
    WEIGHTING: tl.constexpr, LAYOUTS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients of one split of the channels of one view of one sample."""
    sample = tl.program_id(0).to(tl.int64)
    view = tl.program_id(2)
    batch = tl.num_programs(0)
    if OBJECTIVE == MSE:
        pixels = size_h.to(tl.float64) * size_w
        upstream = tl.load(grad_loss).to(tl.float64)
        grad_positive = mean_square_gradient(tl.load(positives + sample), upstream, batch, pixels, consistency)
    else:
        grad_positive = tl.load(grad_positives + sample)
    grad, heatmap = map_gradient(
        view, sample, heatmaps, heatmaps + batch.to(tl.int64) * P,
        matrices, top, left, crop_height, crop_width, flip, state, grad_rows, grad_keys,
        grad_positive, size_h, size_w, exactly(eps, COMPUTE), H, W, H2, W2, STEP, CROP, OBJECTIVE, COMPUTE,
    )  # fmt: skip
    grad = tl.reshape(relu_gradient(heatmap, grad).to(D), [H2 * W2])
    position = tl.arange(0, P2)
    place = tl.minimum(position // W * W2 + position % W, H2 * W2 - 1)
    grad = tl.where(position < P, tl.gather(grad, place, axis=0), 0)

    if view == 1:
        features = aug_features
        gradients = aug_gradients
        grad_features = grad_aug_features
        grad_gradients = grad_aug_gradients
    base = sample * P * channels
    pooled_base = sample * channels if WEIGHTING == 0 else base
    start = tl.program_id(1) * blocks * BLOCK
    stop = tl.minimum(start + blocks * BLOCK, channels)
    features += base
    gradients += pooled_base
    grad_features += base
    grad_gradients += pooled_base
    if NEEDS & 3 == NEEDS >> 2 or view == 0:
        stream_gradients(
            grad, features, gradients, grad_features, grad_gradients, view, start, stop, channels,
            P, P2, BLOCK, NEEDS & 3, WEIGHTING, LAYOUTS, D,
        )  # fmt: skip
    else:
        stream_gradients(
            grad, features, gradients, grad_features, grad_gradients, view, start, stop, channels,
            P, P2, BLOCK, NEEDS >> 2, WEIGHTING, LAYOUTS, D,
        )  # fmt: skip


class Saved(NamedTuple):
    """The parts of what operator cgc saves, as it lays them out (ops/cgc.py), each of them flat."""

    positives: torch.Tensor  # [B]
    row_losses: torch.Tensor  # [B]
    weights: torch.Tensor  # [2, B, C], or empty
    heatmaps: torch.Tensor  # [2, B, H, W]
    rows: torch.Tensor  # [B, H * W], or empty; so the keys
    keys: torch.Tensor
    state: torch.Tensor  # [B, 3, H, W]


def parts_of(saved: torch.Tensor, features: torch.Tensor, pooled: bool, objective: int) -> Saved:
    """Views of its parts."""
    wide, acc = torch.float64, accumulation_dtype(features)
    parts = saved.split(saved_bytes(features, pooled, objective))
    dtypes = (wide, wide, acc, acc, acc, acc, wide if objective == MSE.value else acc)
    return Saved(*(part.view(dtype) for part, dtype in zip(parts, dtypes, strict=True)))


def cgc(
    features, gradients, aug_features, aug_gradients, transform, height, width, temperature, elementwise, objective,
    consistency, eps,
):  # fmt: skip
    """Kernel of operator cgc."""
    size, side, pooled = (height, width), features.shape[2:], pools(gradients, elementwise)
    saved = features.new_empty(sum(saved_bytes(features, pooled, objective)), dtype=torch.uint8)
    parts = parts_of(saved, features, pooled, objective)
    sums = partial_sums([(features, gradients), (aug_features, aug_gradients)], elementwise, parts.weights)
    counter = features.new_empty(1, dtype=torch.int32)
    outputs = parts.rows, parts.keys, parts.positives, parts.state
    resample_maps(
        sums[0], sums[1], parts.heatmaps, sums.shape[2], side, transform, size, eps, objective, counter, outputs
    )
    losses = parts.positives, parts.row_losses
    if objective == MSE.value:
        return mean_square_loss(*losses, size, consistency, sums.dtype), saved
    rows, length = (parts.rows, parts.keys), side[0] * side[1]
    return contrast_loss(*rows, *losses, length, temperature, consistency, counter, objective), saved


def cgc_backward(
    grad_loss, features, gradients, aug_features, aug_gradients, transform, saved, height, width, temperature,
    elementwise, objective, consistency, eps, needs,
):  # fmt: skip
    """Kernel of operator cgc_backward."""
    views = features, gradients, aug_features, aug_gradients
    grads = tuple(wanted(view, bool(needs >> i & 1)) for i, view in enumerate(views))
    side, crop = features.shape[2:], len(transform) > 1
    # Their length tells whether weights were saved; these come back as pooled gradients.
    pooled = len(saved) == sum(saved_bytes(features, True, objective))
    parts = parts_of(saved, features, pooled, objective)
    upstream = parts.rows, parts.keys, parts.positives
    if objective != MSE.value:
        length = side[0] * side[1]
        upstream = contrast_gradients(grad_loss, *upstream, parts.row_losses, length, temperature, consistency)
    share, streams = tiling([features, aug_features], gradients, True)
    maps = constants(*side, crop, objective, parts.heatmaps.dtype)
    if not crop and objective == 1:
        blocks = max(share.blocks, ceil_div(share.blocks * share.count, WARP_SPLITS))
        share = share._replace(blocks=blocks, count=ceil_div(share.blocks * share.count, blocks))
    streams["maxnreg"] = STREAMING_REGISTERS if small(*side) else REGISTERS
    cgc_backward_kernel[(len(features), share.count, 2)](
        grad_loss, *upstream, parts.positives, parts.heatmaps, *pointers(transform), parts.state, *views, *grads,
        features.shape[1], share.blocks, height, width, eps, consistency,
        COMPUTE=maps["D"], **maps | streams, NEEDS=needs,
    )  # fmt: skip
    return grads
