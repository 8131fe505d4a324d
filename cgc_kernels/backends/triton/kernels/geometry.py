"""Where every pixel takes its value from, as small matrices evaluated on the fly (docs/mathematics.md, section 2).

Positions of upsampled and of cropped pixels are multiples of 1 / (2 size), so exact as integers; those of a warp are
float64. Weights have the type of the maps, D. The views are counted 0, the original, and 1, the augmented one.
Matrices are padded to powers of two: weights of cells beyond the map are zero.
"""

import triton
import triton.language as tl


@triton.jit
def product(a, b, D: tl.constexpr):
    """Matrix product on tensor cores; float32 as three products of tf32, which keeps its precision."""
    return tl.dot(a, b, input_precision="tf32x3", out_dtype=D)


@triton.jit
def sandwich(left, m, right, D: tl.constexpr):
    """left m right."""
    return product(product(left, m, D), right, D)


@triton.jit
def clamped(value, low, high):
    """Of integers of any type."""
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def upsampled(pixel, size, CELLS: tl.constexpr):
    """2 size times the position of a pixel of the view on the coarse map (align_corners=False)."""
    return clamped((2 * pixel + 1) * CELLS - size, 0, (CELLS - 1) * 2 * size)


@triton.jit
def hats(position, cell, size, unit):
    """Bilinear weights max(0, 1 - |position - cell|) of cells; position: as of `upsampled`; unit: 1 / (2 size)."""
    return tl.maximum(1 - tl.abs(position - cell * 2 * size).to(unit.dtype) * unit, 0)


@triton.jit
def position_unit(size, D: tl.constexpr):
    """1 / (2 size), [1]."""
    return (0.5 / (tl.zeros([1], tl.float64) + size)).to(D)


@triton.jit
def cell_sums(size, unit, CELLS: tl.constexpr, PADDED: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr):
    """U^T 1, [PADDED]: what each cell adds to the sum of an upsampled axis."""
    cell = tl.arange(0, PADDED)[:, None]
    total = tl.zeros([PADDED, STEP], D)
    for first in range(0, size, STEP):
        pixel = first + tl.arange(0, STEP)[None, :]
        total += tl.where(pixel < size, hats(upsampled(pixel, size, CELLS), cell, size, unit), 0)
    return tl.sum(total, axis=1)


@triton.jit
def cropped(pixel, size, start, length, flip, unit, CELLS: tl.constexpr):
    """Where pixels of the augmented view take their values from: a blend of the positions of two neighbouring pixels,
    (1 - share) low + share high. Clamped at the crop's own border."""
    twice = 2 * size
    pixel = tl.where(flip, size - 1 - pixel, pixel)
    position = clamped((2 * pixel + 1).to(tl.int64) * length - size, 0, (length - 1).to(tl.int64) * twice)
    whole = (position.to(tl.float32) * (1 / twice.to(tl.float32))).to(tl.int32)  # within 1 of the quotient
    rest = (position - whole.to(tl.int64) * twice).to(tl.int32)
    whole += tl.where(rest < 0, -1, tl.where(rest >= twice, 1, 0))
    rest += tl.where(rest < 0, twice, tl.where(rest >= twice, -twice, 0))
    low = upsampled(start + whole, size, CELLS)
    high = upsampled(start + tl.minimum(whole + 1, length - 1), size, CELLS)
    return low, high, rest.to(unit.dtype) * unit


@triton.jit
def axis_products(
    size, unit, start, length, flip, CELLS: tl.constexpr, PADDED: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr
):
    """Q = (R U)^T (R U), P^T = (R U)^T U, P and K = U^T U, [PADDED, PADDED], of one axis: the blocks of V^T V, where
    V = [R U, U] is what both views weigh in the pixels of the augmented one.

    A crop outside the view still reads inside it.
    """
    start = clamped(start, 0, size - 1).to(tl.int32)
    length = clamped(length, 1, size - start).to(tl.int32)
    column = tl.arange(0, 2 * PADDED)[None, :]
    crops = column < PADDED
    cell = column % PADDED
    total = tl.zeros([2 * PADDED, 2 * PADDED], D)
    for first in range(0, size, STEP):
        pixel = first + tl.arange(0, STEP)[:, None]
        low, high, share = cropped(pixel, size, start, length, flip, unit, CELLS)
        augmented = upsampled(pixel, size, CELLS)
        at_low = hats(tl.where(crops, low, augmented), cell, size, unit)
        at_high = hats(tl.where(crops, high, augmented), cell, size, unit)
        v = tl.where(pixel < size, at_low + share * (at_high - at_low), 0)
        total += product(tl.trans(v), v, D)
    of_original, of_augmented = tl.split(tl.permute(tl.reshape(total, [2, PADDED, 2, PADDED]), (1, 3, 0, 2)))
    q, p = tl.split(of_original)
    adjoint, k = tl.split(of_augmented)
    return q, adjoint, p, k


@triton.jit
def crop_products(
    sample, top, left, crop_height, crop_width, flip, size_h, size_w, unit_h, unit_w,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr,
    STRIDES: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """`axis_products` of y and of x for one sample's crop, whose fields are [B], integers of any type, at STRIDES.

    Without strides there is no crop: the original view counts as the augmented one.
    """
    y = 0
    x = 0
    height = size_h
    width = size_w
    flipped = 0
    if STRIDES is not None:
        y = tl.load(top + sample * STRIDES[0]).to(tl.int64)
        x = tl.load(left + sample * STRIDES[1]).to(tl.int64)
        height = tl.load(crop_height + sample * STRIDES[2]).to(tl.int64)
        width = tl.load(crop_width + sample * STRIDES[3]).to(tl.int64)
        flipped = tl.load(flip + sample * STRIDES[4]).to(tl.int32)
    return axis_products(size_h, unit_h, y, height, False, H, H2, STEP, D), axis_products(
        size_w, unit_w, x, width, flipped != 0, W, W2, STEP, D
    )


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
def warp_weights(position, size, unit, CELLS: tl.constexpr, PADDED: tl.constexpr):
    """Weights [N, PADDED] of coarse cells at positions [N], float64, of the fine axis: zero outside it."""
    cell = tl.arange(0, PADDED)[None, :]
    low = tl.floor(position).to(tl.int32)
    low_share = tl.where(low >= 0, (low + 1 - position).to(unit.dtype), 0)[:, None]
    high_share = tl.where(low + 1 < size, (position - low).to(unit.dtype), 0)[:, None]
    at_low = hats(upsampled(low, size, CELLS)[:, None], cell, size, unit)
    return low_share * at_low + high_share * hats(upsampled(low + 1, size, CELLS)[:, None], cell, size, unit)


@triton.jit
def warped(
    original, augmented, inverse, size_h, size_w, unit_h, unit_w, ADJOINT_ONLY: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, H2: tl.constexpr, W2: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """What a warp T puts in the place of Q o Q, of P o P^T and of P^T a P, [H2, W2] each: (T U)^T (T U) o,
    U^T T(U o U^T) U and the adjoint applied to a. ADJOINT_ONLY leaves the others zero.
    """
    rows = tl.arange(0, H2)
    columns = tl.arange(0, W2)
    seen = tl.zeros([H2, W2], D)
    gram = tl.zeros([H2, W2], D)
    adjoint = tl.zeros([H2, W2], D)
    for row in range(0, size_h):
        u_y = hats(upsampled(row, size_h, H), rows, size_h, unit_h)[:, None]
        line = tl.sum(u_y * augmented, axis=0)[None, :]
        along = tl.zeros([W2], D)
        for first in range(0, size_w, STEP):
            pixel = first + tl.arange(0, STEP)
            x, y, visible = warp_sources(inverse, pixel, row + tl.zeros([STEP], tl.int32), size_h, size_w)
            from_y = warp_weights(y, size_h, unit_h, H, H2)
            from_x = tl.where(visible[:, None], warp_weights(x, size_w, unit_w, W, W2), 0)
            u_x = hats(upsampled(pixel, size_w, W)[:, None], columns[None, :], size_w, unit_w)
            adjoint += product(tl.trans(from_y), tl.sum(line * u_x, axis=1)[:, None] * from_x, D)
            if not ADJOINT_ONLY:
                value = tl.sum(product(from_y, original, D) * from_x, axis=1)[:, None]
                along += tl.sum(value * u_x, axis=0)
                gram += product(tl.trans(from_y), value * from_x, D)
        seen += u_y * along[None, :]
    return gram, seen, adjoint
