"""Stage cam: features, gradients -> heatmaps. Features and gradients are each read once, whatever their layout.

Tiles are [channels, positions] of one sample; which of the two lies contiguous in memory is for the compiler to see.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ....ops.cam import pools, wanted
from ....options import accumulation_dtype
from .launch import LARGEST_SAMPLE, Launch, check_map, kind, plans, split, streaming, triton_dtype

POOLED, MEAN, ELEMENTWISE = (tl.constexpr(i) for i in range(3))
# Memory formats of the two views: bit 0, the first is channels_last; bit 1, the second.
CONTIGUOUS, BOTH_CHANNELS_LAST = tl.constexpr(0), tl.constexpr(3)


@triton.jit
def offsets(channel, position, view, channels, P: tl.constexpr, LAYOUTS: tl.constexpr):
    """Places of a tile in a sample of features."""
    if LAYOUTS == CONTIGUOUS:
        place = channel[:, None] * P + position[None, :]
    elif LAYOUTS == BOTH_CHANNELS_LAST:
        place = position[None, :] * channels + channel[:, None]
    else:
        last = ((LAYOUTS >> view) & 1) != 0
        place = channel[:, None] * tl.where(last, 1, P) + position[None, :] * tl.where(last, channels, 1)
    return place


@triton.jit
def cam_kernel(
    features, gradients, aug_features, aug_gradients, sums, weights, channels, blocks,
    P: tl.constexpr, P2: tl.constexpr, BLOCK: tl.constexpr,
    WEIGHTING: tl.constexpr, LAYOUTS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Partial sums over the channels of one split, [views, B, splits, P], before the ReLU; weights [views, B, C]."""
    sample = tl.program_id(0).to(tl.int64)
    split_index = tl.program_id(1)
    view = tl.program_id(2)
    if view == 1:
        features = aug_features
        gradients = aug_gradients
    row = view.to(tl.int64) * tl.num_programs(0) + sample
    position = tl.arange(0, P2)
    features += sample * P * channels
    gradients += sample * channels if WEIGHTING == POOLED else sample * P * channels
    total = tl.zeros([BLOCK, P2], D)
    start = split_index * blocks * BLOCK
    for first in range(start, tl.minimum(start + blocks * BLOCK, channels), BLOCK):
        channel = first + tl.arange(0, BLOCK)
        real = channel < channels
        inside = real[:, None] & (position < P)[None, :]
        place = offsets(channel, position, view, channels, P, LAYOUTS)
        if WEIGHTING == POOLED:
            weight = tl.load(gradients + channel, mask=real, other=0).to(D)[:, None]
        else:
            weight = tl.load(gradients + place, mask=inside, other=0).to(D)
        a = tl.load(features + place, mask=inside, other=0).to(D)
        if WEIGHTING == MEAN:
            mean = tl.sum(weight, axis=1) / P
            tl.store(weights + row * channels + channel, mean, mask=real)
            total += mean[:, None] * a
        else:
            total += weight * a
    sums += (row * tl.num_programs(1) + split_index) * P
    tl.store(sums + position, tl.sum(total, axis=0), mask=position < P)


@triton.jit
def stream_gradients(
    grad, features, gradients, grad_features, grad_gradients, view, start, stop, channels,
    P: tl.constexpr, P2: tl.constexpr, BLOCK: tl.constexpr, NEEDS: tl.constexpr,
    WEIGHTING: tl.constexpr, LAYOUTS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients of one sample's channels start .. stop - 1 from that of its map before the ReLU, grad [P2].

    NEEDS: bit 0, grad_features; bit 1, grad_gradients. Each tensor that they depend on is read once.
    """
    position = tl.arange(0, P2)
    grad = grad[None, :]
    for first in range(start, stop, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        real = channel < channels
        inside = real[:, None] & (position < P)[None, :]
        place = offsets(channel, position, view, channels, P, LAYOUTS)
        if NEEDS & 1:
            if WEIGHTING == POOLED:
                weight = tl.load(gradients + channel, mask=real, other=0).to(D)[:, None]
            else:
                weight = tl.load(gradients + place, mask=inside, other=0).to(D)
        if NEEDS & 2:
            a = tl.load(features + place, mask=inside, other=0).to(D)
        if NEEDS & 1:
            tl.store(grad_features + place, (weight * grad).to(grad_features.dtype.element_ty), mask=inside)
        if NEEDS & 2:
            if WEIGHTING == POOLED:
                pooled = tl.sum(a * grad, axis=1)
                tl.store(grad_gradients + channel, pooled.to(grad_gradients.dtype.element_ty), mask=real)
            else:
                tl.store(grad_gradients + place, (a * grad).to(grad_gradients.dtype.element_ty), mask=inside)


@triton.jit
def relu_gradient(heatmap, grad):
    """Gradient before the ReLU; a NaN heatmap passes its gradient on."""
    return tl.where(heatmap <= 0, 0, grad)


@triton.jit
def cam_backward_kernel(
    grad_heatmaps, heatmaps, features, gradients, aug_features, aug_gradients,
    grad_features, grad_gradients, grad_aug_features, grad_aug_gradients, channels, blocks,
    P: tl.constexpr, P2: tl.constexpr, BLOCK: tl.constexpr, NEEDS: tl.constexpr, VIEWS: tl.constexpr,
    WEIGHTING: tl.constexpr, LAYOUTS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients of one split of the channels of one view of one sample; grad_heatmaps and heatmaps: [views, B, P].

    NEEDS: two bits for each view, as of stream_gradients.
    """
    sample = tl.program_id(0).to(tl.int64)
    view = tl.program_id(2)
    row = view.to(tl.int64) * tl.num_programs(0) + sample
    position = tl.arange(0, P2)
    grad = tl.load(grad_heatmaps + row * P + position, mask=position < P, other=0)
    heatmap = tl.load(heatmaps + row * P + position, mask=position < P, other=0)
    grad = relu_gradient(heatmap, grad)
    if view == 1:
        features = aug_features
        gradients = aug_gradients
        grad_features = grad_aug_features
        grad_gradients = grad_aug_gradients
    start = tl.program_id(1) * blocks * BLOCK
    stop = tl.minimum(start + blocks * BLOCK, channels)
    base = sample * P * channels
    pooled_base = sample * channels if WEIGHTING == POOLED else base
    features += base
    gradients += pooled_base
    grad_features += base
    grad_gradients += pooled_base
    if VIEWS == 1 or NEEDS & 3 == NEEDS >> 2 or view == 0:
        stream_gradients(
            grad, features, gradients, grad_features, grad_gradients, view, start, stop, channels,
            P, P2, BLOCK, NEEDS & 3, WEIGHTING, LAYOUTS, D,
        )  # fmt: skip
    else:
        stream_gradients(
            grad, features, gradients, grad_features, grad_gradients, view, start, stop, channels,
            P, P2, BLOCK, NEEDS >> 2, WEIGHTING, LAYOUTS, D,
        )  # fmt: skip


class Features(NamedTuple):
    """What launches depend on, of the features of one view or of two alike."""

    views: int
    shape: torch.Size
    dtype: torch.dtype
    layouts: int
    device: torch.device


def describe(features: torch.Tensor, aug_features: torch.Tensor | None = None) -> Features:
    """For the features of one view or of both."""
    second = features if aug_features is None else aug_features
    layouts = (not features.is_contiguous()) + 2 * (not second.is_contiguous())
    return Features(1 + (aug_features is not None), features.shape, features.dtype, layouts, features.device)


def weighting_number(gradients: torch.Tensor, elementwise: bool) -> int:
    """POOLED, MEAN or ELEMENTWISE, as a number."""
    kind = POOLED if gradients.dim() == 2 else ELEMENTWISE if elementwise else MEAN
    return kind.value


def _launch(kernel, of: Features, weighting: int, **fixed) -> Launch:
    batch, channels, height, width = of.shape
    check_map(height, width)
    if channels * height * width > LARGEST_SAMPLE:
        raise ValueError(
            f"C * H * W must be at most {LARGEST_SAMPLE} for backend 'triton', got {channels * height * width}; "
            "use backend='torch'"
        )
    tile = streaming(height * width, of.dtype.itemsize, of.layouts == BOTH_CHANNELS_LAST.value)
    share = split(channels, of.views * batch, tile.block, of.device)
    fixed |= {"channels": channels, "blocks": share.blocks, "P": height * width, "P2": tile.positions}
    fixed |= {"BLOCK": tile.block, "WEIGHTING": weighting, "LAYOUTS": of.layouts, "D": triton_dtype(of.dtype)}
    return Launch(kernel, (batch, share.count, of.views), tile.options, fixed)


def sums_launch(of: Features, weighting: int) -> Launch:
    """Of partial sums [views, B, splits, P]; the grid's second number is that of the splits."""
    return _launch(cam_kernel, of, weighting)


def gradients_launch(of: Features, weighting: int, needs: int) -> Launch:
    """Of the gradients that are asked for: two bits a view, in the order of the tensors."""
    return _launch(cam_backward_kernel, of, weighting, NEEDS=needs, VIEWS=of.views)


_forward, _backward = plans(sums_launch), plans(gradients_launch)


def cam(features: torch.Tensor, gradients: torch.Tensor, elementwise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernel of operator cam."""
    batch, channels, height, width = features.shape
    dtype, given = accumulation_dtype(features), (features, gradients)
    weights = features.new_empty((batch, channels) if pools(gradients, elementwise) else (0,), dtype=dtype)
    launch = _forward(kind(*given), describe(features), weighting_number(gradients, elementwise))
    sums = features.new_empty((batch, launch.grid[1], height, width), dtype=dtype)
    launch(*given, *given, sums, weights)
    return sums.sum(dim=1).relu_(), weights


def cam_backward(grad_heatmaps, heatmaps, features, gradients, need_features, need_gradients):
    """Kernel of operator cam_backward."""
    given, needs = (grad_heatmaps, heatmaps, features, gradients), need_features + 2 * need_gradients
    grads = wanted(features, need_features), wanted(gradients, need_gradients)
    launch = _backward(kind(*given), describe(features), weighting_number(gradients, True), needs)
    launch(*given, *given[2:], *grads, *grads)
    return grads
