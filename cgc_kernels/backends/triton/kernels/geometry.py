"""Where every pixel takes its value from, as small matrices evaluated on the fly (docs/mathematics.md, section 2).

Positions are float64, since float32 would place a pixel of a large view wrongly; weights have the type of the maps, D.
`step` is 1 / size: a float64 division is a call, and what is alive around it would be spilled.
Matrices are padded to powers of two: weights of cells beyond the map are zero.
"""

import triton
import triton.language as tl


@triton.jit
def product(a, b, D: tl.constexpr):
    """Matrix product without the loss of precision that tf32 brings."""
    return tl.dot(a, b, input_precision="ieee", out_dtype=D)


@triton.jit
def sandwich(left, m, right, D: tl.constexpr):
    """left m right."""
    return product(product(left, m, D), right, D)


@triton.jit
def hats(position, cell, D: tl.constexpr):
    """Bilinear weights max(0, 1 - |position - cell|) of positions >= 0."""
    low = tl.floor(position)
    share = (position - low).to(D)
    offset = cell - low.to(tl.int32)
    return tl.where(offset == 0, 1 - share, 0) + tl.where(offset == 1, share, 0)


@triton.jit
def upsampled(pixel, step, CELLS: tl.constexpr):
    """Position of a pixel of the view on the coarse map (align_corners=False)."""
    position = (pixel.to(tl.float64) + 0.5) * (CELLS * step) - 0.5
    return tl.minimum(tl.maximum(position, 0.0), CELLS - 1.0)


@triton.jit
def upsampling(size, step, CELLS: tl.constexpr, PADDED: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr):
    """K = U^T U, [PADDED, PADDED], and U^T 1, [PADDED]."""
    cell = tl.arange(0, PADDED)
    gram = tl.zeros([PADDED, PADDED], D)
    sums = tl.zeros([PADDED], D)
    for first in range(0, size, STEP):
        pixel = first + tl.arange(0, STEP)
        u = hats(upsampled(pixel, step, CELLS)[:, None], cell[None, :], D)
        u = tl.where((pixel < size)[:, None], u, 0)
        gram += product(tl.trans(u), u, D)
        sums += tl.sum(u, axis=0)
    return gram, sums


@triton.jit
def cropping(
    size, step, start, length, flip, CELLS: tl.constexpr, PADDED: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr
):
    """P = U^T R U and Q = (R U)^T (R U) of one crop along one axis, [PADDED, PADDED].

    Pixels are clamped at the crop's own border, and a crop outside the view still reads inside it.
    """
    cell = tl.arange(0, PADDED)
    through = tl.zeros([PADDED, PADDED], D)
    gram = tl.zeros([PADDED, PADDED], D)
    ratio = length.to(tl.float64) * step
    start = tl.minimum(tl.maximum(start, 0), size - 1)
    count = tl.minimum(tl.maximum(length, 1), size - start)
    for first in range(0, size, STEP):
        pixel = first + tl.arange(0, STEP)
        source = tl.where(flip != 0, size - 1 - pixel, pixel)
        position = (source.to(tl.float64) + 0.5) * ratio - 0.5
        position = tl.minimum(tl.maximum(position, 0.0), (count - 1).to(tl.float64))
        low = tl.floor(position)
        share = (position - low).to(D)[:, None]
        high = tl.minimum(low + 1.0, (count - 1).to(tl.float64))
        at_low = upsampled(start + low, step, CELLS)
        at_high = upsampled(start + high, step, CELLS)
        r = (1 - share) * hats(at_low[:, None], cell[None, :], D) + share * hats(at_high[:, None], cell[None, :], D)
        inside = (pixel < size)[:, None]
        r = tl.where(inside, r, 0)
        u = tl.where(inside, hats(upsampled(pixel, step, CELLS)[:, None], cell[None, :], D), 0)
        through += product(tl.trans(u), r, D)
        gram += product(tl.trans(r), r, D)
    return through, gram


@triton.jit
def crop_products(
    sample, top, left, crop_height, crop_width, flip, size_h, size_w, step_h, step_w,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """P and Q of one sample's crop along y, and along x; the fields are [B], integers of any type."""
    y = tl.load(top + sample).to(tl.int64)
    x = tl.load(left + sample).to(tl.int64)
    height = tl.load(crop_height + sample).to(tl.int64)
    width = tl.load(crop_width + sample).to(tl.int64)
    p_y, q_y = cropping(size_h, step_h, y, height, 0, H, H2, STEP, D)
    p_x, q_x = cropping(size_w, step_w, x, width, tl.load(flip + sample).to(tl.int32), W, W2, STEP, D)
    return p_y, q_y, p_x, q_x


@triton.jit
def warp_sources(inverse, pixel_x, pixel_y, size_h, size_w):
    """Source positions of augmented pixels under an inverse homography, and whether they see anything."""
    x = pixel_x.to(tl.float64)
    y = pixel_y.to(tl.float64)
    depth = tl.load(inverse + 6) * x + tl.load(inverse + 7) * y + tl.load(inverse + 8)
    scale = 1 / depth
    source_x = (tl.load(inverse + 0) * x + tl.load(inverse + 1) * y + tl.load(inverse + 2)) * scale
    source_y = (tl.load(inverse + 3) * x + tl.load(inverse + 4) * y + tl.load(inverse + 5)) * scale
    seen = (depth > 0) & (source_x > -1) & (source_x < size_w) & (source_y > -1) & (source_y < size_h)
    seen = seen & (pixel_x < size_w)
    return tl.where(seen, source_x, 0.0), tl.where(seen, source_y, 0.0), seen


@triton.jit
def warp_weights(position, size, step, CELLS: tl.constexpr, PADDED: tl.constexpr, D: tl.constexpr):
    """Weights [N, PADDED] of coarse cells at positions [N] of the fine axis: zero outside it."""
    cell = tl.arange(0, PADDED)[None, :]
    low = tl.floor(position)
    share = (position - low).to(D)
    low_share = tl.where(low >= 0, 1 - share, 0)[:, None]
    high_share = tl.where(low + 1 < size, share, 0)[:, None]
    at_low = upsampled(low, step, CELLS)[:, None]
    at_high = upsampled(low + 1, step, CELLS)[:, None]
    return low_share * hats(at_low, cell, D) + high_share * hats(at_high, cell, D)


@triton.jit
def warped(
    original, augmented, inverse, size_h, size_w, step_h, step_w, ADJOINT_ONLY: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """U^T T(U o U^T) U, its gram image (T U)^T (T U) o and the adjoint (T U)^T U a U^T of one warp, [H2, W2] each.

    ADJOINT_ONLY leaves the first two zero.
    """
    rows = tl.arange(0, H2)
    columns = tl.arange(0, W2)
    seen = tl.zeros([H2, W2], D)
    gram = tl.zeros([H2, W2], D)
    adjoint = tl.zeros([H2, W2], D)
    for row in range(0, size_h):
        u_y = hats(upsampled(row + tl.zeros([H2], tl.int32), step_h, H), rows, D)[:, None]
        line = tl.sum(u_y * augmented, axis=0)[None, :]
        along = tl.zeros([W2], D)
        for first in range(0, size_w, STEP):
            pixel = first + tl.arange(0, STEP)
            x, y, visible = warp_sources(inverse, pixel, row + tl.zeros([STEP], tl.int32), size_h, size_w)
            from_y = warp_weights(y, size_h, step_h, H, H2, D)
            from_x = tl.where(visible[:, None], warp_weights(x, size_w, step_w, W, W2, D), 0)
            u_x = hats(upsampled(pixel, step_w, W)[:, None], columns[None, :], D)
            adjoint += product(tl.trans(from_y), tl.sum(line * u_x, axis=1)[:, None] * from_x, D)
            if not ADJOINT_ONLY:
                value = tl.sum(product(from_y, original, D) * from_x, axis=1)[:, None]
                along += tl.sum(value * u_x, axis=0)
                gram += product(tl.trans(from_y), value * from_x, D)
        seen += u_y * along[None, :]
    return seen, gram, adjoint
