"""The three stages chained: three launches forward (cam; resample; contrast with the mean), two backward."""

import torch
import triton
import triton.language as tl

from ....ops.cam import wanted
from .cam import partial_sums, relu_gradient, stream_gradients, tiling
from .contrast import contrast_gradients, contrast_loss, mean_square_loss
from .launch import REGISTERS, on_device_of, small
from .resample import MSE, constants, exactly, map_gradient, resample_maps

# A split repeats its sample's share of stage resample; that of a warp, over all pixels of a view, is worth few splits.
WARP_SPLITS = 4
# Registers of a thread of the backward of small maps: two blocks stay resident, whose loads fill the memory's pipeline.
STREAMING_REGISTERS = 128


@triton.jit
def mean_square_gradient(positive, grad_loss, batch, pixels, consistency):
    """Gradient of a positive of the mse objective; a cosine above 1 counts as 1."""
    share = -2 * grad_loss / (batch * pixels)
    return tl.where(positive > 1, 0.0, share) - consistency * grad_loss / batch


@triton.jit(do_not_specialize=["size_h", "size_w"])
def cgc_backward_kernel(
    grad_loss, grad_rows, grad_keys, grad_positives, positives, heatmaps, transform, state,
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
        view, sample, heatmaps, heatmaps + batch.to(tl.int64) * P, transform, state, grad_rows, grad_keys,
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


def cgc(
    features, gradients, aug_features, aug_gradients, transform, height, width, temperature, elementwise, objective,
    consistency, eps,
):  # fmt: skip
    """Kernel of operator cgc."""
    size = height, width
    sums, weights = partial_sums([(features, gradients), (aug_features, aug_gradients)], elementwise)
    batch, _, *side = features.shape
    heatmaps = sums.new_empty((2, batch, *side))
    counter = features.new_empty(1, dtype=torch.int32)
    rows, keys, positives, state = resample_maps(
        sums[0], sums[1], heatmaps, sums.shape[2], transform, size, eps, objective, counter
    )
    if objective == MSE.value:
        loss, row_losses = mean_square_loss(positives, size, consistency, heatmaps.dtype)
    else:
        loss, row_losses = contrast_loss(rows, keys, positives, temperature, consistency, counter, objective)
    return loss, heatmaps, weights, rows, keys, positives, row_losses, state


def cgc_backward(
    grad_loss, features, gradients, aug_features, aug_gradients, transform, heatmaps, rows, keys, positives, row_losses,
    state, height, width, temperature, elementwise, objective, consistency, eps, needs,
):  # fmt: skip
    """Kernel of operator cgc_backward."""
    views = features, gradients, aug_features, aug_gradients
    grads = tuple(wanted(view, bool(needs >> i & 1)) for i, view in enumerate(views))
    upstream = rows, keys, positives
    if objective != MSE.value:
        upstream = contrast_gradients(grad_loss, rows, keys, positives, row_losses, temperature, consistency)
    share, streams = tiling([features, aug_features], gradients, True)
    maps = constants(*features.shape[2:], transform, objective, heatmaps.dtype)
    if not maps["CROP"] and objective == 1:
        blocks = max(share.blocks, triton.cdiv(share.blocks * share.count, WARP_SPLITS))
        share = share._replace(blocks=blocks, count=triton.cdiv(share.blocks * share.count, blocks))
    streams["maxnreg"] = STREAMING_REGISTERS if small(*features.shape[2:]) else REGISTERS
    with on_device_of(features):
        cgc_backward_kernel[(len(features), share.count, 2)](
            grad_loss, *upstream, positives, heatmaps, transform, state, *views, *grads,
            features.shape[1], share.blocks, height, width, eps, consistency,
            COMPUTE=maps.pop("D"), **maps, **streams, NEEDS=needs,
        )  # fmt: skip
    return grads
