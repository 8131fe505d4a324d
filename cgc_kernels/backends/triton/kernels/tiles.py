"""Tiles of maps: one sample's of both views, [2, H2, W2], of which the cells beyond H and W are padding."""

import triton
import triton.language as tl


@triton.jit
def exactly(value, D: tl.constexpr):
    """A float64 argument of a kernel as a tensor [1] of type D."""
    return (tl.zeros([1], tl.float64) + value).to(D)


@triton.jit
def inverse_root(square):
    """1 / sqrt; 0 for a map that sees nothing, so that its cosine and its gradient are 0."""
    return tl.where(square == 0, 0, tl.rsqrt(tl.where(square == 0, 1, square)))


@triton.jit
def places(H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr):
    """Places of a map's cells, [1, H2, W2], and which lie inside."""
    y = tl.arange(0, H2)[None, :, None]
    x = tl.arange(0, W2)[None, None, :]
    return y * W + x, (y < H) & (x < W)


@triton.jit
def of_view(maps, WHICH: tl.constexpr):
    """The map of one view, [H2, W2], of both views' [2, H2, W2]."""
    return tl.sum(tl.where(tl.arange(0, 2)[:, None, None] == WHICH, maps, 0), axis=0)


@triton.jit
def both(original, augmented):
    """Maps [H2, W2] of the two views as one tile, [2, H2, W2]."""
    return tl.where(tl.arange(0, 2)[:, None, None] == 0, original[None, :, :], augmented[None, :, :])


@triton.jit
def chosen(index, a, b, c, d):
    """The one of four tensors."""
    return tl.where(index < 2, tl.where(index == 0, a, b), tl.where(index == 2, c, d))


@triton.jit
def inner(a, b):
    """Inner products of maps [N, H2, W2], [N]."""
    return tl.sum(tl.sum(a * b, axis=2), axis=1)


@triton.jit
def spread(numbers):
    """A number [N] for each map, to go with [N, H2, W2]."""
    return numbers[:, None, None]
