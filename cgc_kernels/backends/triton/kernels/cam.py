"""Stage cam: features, gradients -> heatmaps. Features and gradients are each read once, whatever their layout.

Tiles are [channels, positions] of one sample; which of the two lies contiguous in memory is for the compiler to see.
"""

import torch
import triton
import triton.language as tl

from ....ops.cam import pools, wanted
from ....options import accumulation_dtype
from .launch import LARGEST_SAMPLE, check_map, on_device_of, split, streaming, triton_dtype

POOLED, MEAN, ELEMENTWISE = (tl.constexpr(i) for i in range(3))


@triton.jit
def offsets(channel, position, channels, P: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Places of a tile in a sample of features."""
    if CHANNELS_LAST:
        return position[None, :] * channels + channel[:, None]
    return channel[:, None] * P + position[None, :]


@triton.jit
def cam_kernel(
    features, gradients, aug_features, aug_gradients, sums, weights, channels, blocks,
    P: tl.constexpr, P2: tl.constexpr, BLOCK: tl.constexpr,
    WEIGHTING: tl.constexpr, CHANNELS_LAST: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Partial sums over the channels of one split, [views, B, splits, P], before the ReLU; weights [views, B, C]."""
    sample = tl.program_id(0).to(tl.int64)
    split_index = tl.program_id(1)
    if tl.program_id(2) == 1:
        features = aug_features
        gradients = aug_gradients
    row = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + sample
    position = tl.arange(0, P2)
    features += sample * P * channels
    gradients += sample * channels if WEIGHTING == POOLED else sample * P * channels
    total = tl.zeros([BLOCK, P2], D)
    start = split_index * blocks * BLOCK
    for first in range(start, tl.minimum(start + blocks * BLOCK, channels), BLOCK):
        channel = first + tl.arange(0, BLOCK)
        real = channel < channels
        inside = real[:, None] & (position < P)[None, :]
        place = offsets(channel, position, channels, P, CHANNELS_LAST)
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
    grad, features, gradients, grad_features, grad_gradients, start, stop, channels,
    P: tl.constexpr, P2: tl.constexpr, BLOCK: tl.constexpr, NEEDS: tl.constexpr,
    WEIGHTING: tl.constexpr, CHANNELS_LAST: tl.constexpr, D: tl.constexpr,
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
        place = offsets(channel, position, channels, P, CHANNELS_LAST)
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
    grad_heatmaps, heatmaps, features, gradients, grad_features, grad_gradients, channels, blocks,
    P: tl.constexpr, P2: tl.constexpr, BLOCK: tl.constexpr, NEEDS: tl.constexpr,
    WEIGHTING: tl.constexpr, CHANNELS_LAST: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients of one split of the channels of one sample."""
    sample = tl.program_id(0).to(tl.int64)
    position = tl.arange(0, P2)
    grad = tl.load(grad_heatmaps + sample * P + position, mask=position < P, other=0)
    heatmap = tl.load(heatmaps + sample * P + position, mask=position < P, other=0)
    start = tl.program_id(1) * blocks * BLOCK
    base = sample * P * channels
    pooled_base = sample * channels if WEIGHTING == POOLED else base
    stream_gradients(
        relu_gradient(heatmap, grad), features + base, gradients + pooled_base,
        grad_features + base, grad_gradients + pooled_base,
        start, tl.minimum(start + blocks * BLOCK, channels), channels,
        P, P2, BLOCK, NEEDS, WEIGHTING, CHANNELS_LAST, D,
    )  # fmt: skip


def partial_sums(views: list[tuple[torch.Tensor, torch.Tensor]], elementwise: bool) -> tuple[torch.Tensor, ...]:
    """Sums over splits of the channels, [views, B, splits, P], and the weights that averaging gives, [views, B, C]."""
    features, gradients = views[0]
    aug_features, aug_gradients = views[-1]
    batch, channels, height, width = features.shape
    check(features)
    dtype = accumulation_dtype(features)
    tile, share, constants = tiling(features, gradients, elementwise, len(views))
    sums = features.new_empty((len(views), batch, share.count, height * width), dtype=dtype)
    averages = pools(gradients, elementwise)
    weights = features.new_empty((len(views), batch, channels) if averages else (len(views), 0), dtype=dtype)
    with on_device_of(features):
        cam_kernel[(batch, share.count, len(views))](
            features, gradients, aug_features, aug_gradients, sums, weights, channels, share.blocks,
            **constants, num_warps=tile.num_warps,
        )  # fmt: skip
    return sums, weights


def tiling(features: torch.Tensor, gradients: torch.Tensor, elementwise: bool, views: int):
    """Tile, split of the channels, and the kernels' compile-time arguments."""
    batch, channels, height, width = features.shape
    tile = streaming(height * width, features.element_size())
    share = split(channels, views * batch, tile.block, features.device)
    constants = {
        "P": height * width,
        "P2": tile.positions,
        "BLOCK": tile.block,
        "WEIGHTING": weighting_of(gradients, elementwise),
        "CHANNELS_LAST": not features.is_contiguous(),
        "D": triton_dtype(features.dtype),
    }
    return tile, share, constants


def weighting_of(gradients: torch.Tensor, elementwise: bool) -> int:
    """POOLED, MEAN or ELEMENTWISE, as a number."""
    kind = POOLED if gradients.dim() == 2 else ELEMENTWISE if elementwise else MEAN
    return kind.value


def check(features: torch.Tensor) -> None:
    """Raise ValueError for shapes beyond what the kernels address."""
    check_map(*features.shape[2:])
    if features[0].numel() > LARGEST_SAMPLE:
        raise ValueError(
            f"C * H * W must be at most {LARGEST_SAMPLE} for backend 'triton', got {features[0].numel()}; "
            "use backend='torch'"
        )


def cam(features: torch.Tensor, gradients: torch.Tensor, elementwise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernel of operator cam."""
    sums, weights = partial_sums([(features, gradients)], elementwise)
    batch, _, height, width = features.shape
    return sums[0].sum(dim=1).relu_().view(batch, height, width), weights[0]


def cam_backward(grad_heatmaps, heatmaps, features, gradients, need_features, need_gradients):
    """Kernel of operator cam_backward."""
    grads = wanted(features, need_features), wanted(gradients, need_gradients)
    tile, share, constants = tiling(features, gradients, True, 1)
    with on_device_of(features):
        cam_backward_kernel[(features.shape[0], share.count)](
            grad_heatmaps, heatmaps, features, gradients, *grads, features.shape[1], share.blocks,
            NEEDS=need_features + 2 * need_gradients, **constants, num_warps=tile.num_warps,
        )  # fmt: skip
    return grads
