"""Stage contrast: rows, keys, positives -> loss, in tiles of similarities; [B, B] is never stored.

Logits are taken relative to the positive, whose own is then 0; a running maximum serves any temperature. The backward
recomputes the tiles from the row losses. Row and key of the released objective are images of one map, so that their
similarities are symmetric: one product of each pair gives both gradients.
"""

import torch
import triton
import triton.language as tl

from .geometry import product
from .launch import Launch, ceil_div, contrasting, kind, plans, triton_dtype
from .resample import MSE, RELEASED

# Row losses that the last program sums at once.
SUM = tl.constexpr(1024)
INTEGERS = ("batch", "begin", "count")


@triton.jit
def load_rows(rows, i, k, batch, LENGTH: tl.constexpr):
    """Cells k of rows i of [batch, LENGTH]; zero beyond."""
    return tl.load(rows + i.to(tl.int64) * LENGTH + k, mask=(i < batch) & (k < LENGTH), other=0)


@triton.jit
def similarities(a, b, i, j, batch, LENGTH: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr):
    """<a_i, b_j>, [M, N]; a, b: [B, LENGTH]."""
    total = tl.zeros([i.shape[0], j.shape[0]], D)
    for first in range(0, LENGTH, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        left = tl.load(
            a + i.to(tl.int64)[:, None] * LENGTH + k[None, :],
            mask=(i < batch)[:, None] & (k < LENGTH)[None, :],
            other=0,
        )
        right = tl.load(
            b + j.to(tl.int64)[None, :] * LENGTH + k[:, None],
            mask=(j < batch)[None, :] & (k < LENGTH)[:, None],
            other=0,
        )
        total += product(left, right, D)
    return total


@triton.jit
def square(positive):
    """||a - o||^2 of unit maps; never negative, and 1 where a warp sees nothing, whose map is zero."""
    return tl.where(positive == 0, 1.0, tl.where(positive > 1, 0.0, 2 * (1 - positive)))


@triton.jit
def store_loss(loss, row_losses, positives, count, consistency, pixels, OBJECTIVE: tl.constexpr):
    """The loss from the losses and the positives of `count` rows, summed in a fixed order, in float64."""
    total = tl.zeros([SUM], tl.float64)
    distance = tl.zeros([SUM], tl.float64)
    for first in range(0, count, SUM):
        i = first + tl.arange(0, SUM)
        positive = tl.load(positives + i, mask=i < count, other=1)
        if OBJECTIVE == MSE:
            total += square(positive) / pixels
        else:
            # Written by other programs of this launch: not from the first-level cache.
            total += tl.load(row_losses + i, mask=i < count, other=0, cache_modifier=".cg")
        distance += 1 - positive
    mean = tl.sum(total, axis=0) / count
    if consistency > 0:
        mean += consistency * tl.sum(distance, axis=0) / count
    tl.store(loss, mean.to(loss.dtype.element_ty))


@triton.jit(do_not_specialize=INTEGERS)
def contrast_kernel(
    rows, keys, positives, row_losses, loss, counter, temperature: tl.float64, consistency: tl.float64,
    batch, begin, count,
    OBJECTIVE: tl.constexpr, LENGTH: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """log(1 + sum over j != i of exp(logit_ij)) of a block of the rows begin .. begin + count - 1, against all keys.

    The last program to finish takes the mean.
    """
    place = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i = begin + place
    positive = tl.load(positives + i, mask=i < batch, other=0).to(D)[:, None]
    scale = (1 / (tl.zeros([1, 1], tl.float64) + temperature)).to(D)
    highest = tl.zeros([BLOCK_M], D)
    others = tl.zeros([BLOCK_M], D)
    for first in range(0, batch, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        logit = (similarities(rows, keys, i, j, batch, LENGTH, BLOCK_K, D) - positive) * scale
        negative = (j < batch)[None, :] & (i[:, None] != j[None, :])
        logit = tl.where(negative, logit, float("-inf"))
        top = tl.maximum(highest, tl.max(logit, axis=1))
        others = others * tl.exp(highest - top) + tl.sum(tl.exp(logit - top[:, None]), axis=1)
        highest = top
    exact = highest.to(tl.float64)
    row_loss = exact + tl.log(tl.exp(-exact) + others.to(tl.float64))
    tl.store(row_losses + place, row_loss, mask=place < count)
    tl.debug_barrier()  # all of this program's losses, before any other can know that it is done
    if tl.atomic_add(counter, 1) == tl.num_programs(0) - 1:
        store_loss(loss, row_losses, positives + begin, count, consistency, 1.0, OBJECTIVE)


@triton.jit(do_not_specialize=["batch"])
def mean_square_kernel(loss, row_losses, positives, consistency: tl.float64, batch, pixels: tl.float64):
    """Loss of the mse objective, whose row losses are zero."""
    for first in range(0, batch, SUM):
        i = first + tl.arange(0, SUM)
        tl.store(row_losses + i, 0.0, mask=i < batch)
    store_loss(loss, row_losses, positives, batch, consistency, pixels, MSE)


@triton.jit(do_not_specialize=INTEGERS)
def contrast_backward_kernel(
    grad_loss, rows, keys, positives, row_losses, grad_rows, grad_keys, grad_positives,
    temperature: tl.float64, consistency: tl.float64, batch, begin, count, SYMMETRIC: tl.constexpr,
    LENGTH: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients of some cells of a block of rows, or of keys, and of the rows' positives; of those from `begin` on.

    A similarity's weight is its probability among the logits of the row that owns it, times grad_loss / (tau B).
    SYMMETRIC: grad_rows takes the gradients of the unit maps that rows and keys are images of, grad_keys nothing.
    """
    mine = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i = begin + mine
    of_keys = tl.program_id(1) == 1
    k = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    left = rows
    right = keys
    grads = grad_rows
    if of_keys:
        left = keys
        right = rows
        grads = grad_keys
    own_positive = tl.load(positives + i, mask=i < batch, other=0).to(D)[:, None]
    own_loss = tl.load(row_losses + i, mask=i < batch, other=0).to(D)[:, None]
    inverse = (1 / (tl.zeros([1, 1], tl.float64) + temperature)).to(D)
    upstream = tl.load(grad_loss).to(tl.float64) / batch
    total = tl.zeros([BLOCK_M, BLOCK_K], D)
    others = tl.zeros([BLOCK_M], D)
    for first in range(0, batch, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        their_positive = tl.load(positives + j, mask=j < batch, other=0).to(D)[None, :]
        their_loss = tl.load(row_losses + j, mask=j < batch, other=0).to(D)[None, :]
        similarity = similarities(left, right, i, j, batch, LENGTH, BLOCK_K, D)
        negative = (i < batch)[:, None] & (j < batch)[None, :] & (i[:, None] != j[None, :])
        own = (similarity - own_positive) * inverse - own_loss
        theirs = (similarity - their_positive) * inverse - their_loss
        if SYMMETRIC:
            weight = tl.exp(tl.where(negative, own, float("-inf")))
            others += tl.sum(weight, axis=1)
            weight += tl.exp(tl.where(negative, theirs, float("-inf")))
        else:
            weight = tl.exp(tl.where(negative, tl.where(of_keys, theirs, own), float("-inf")))
            others += tl.sum(weight, axis=1)
        total += product(weight, load_rows(right, j[:, None], k[None, :], batch, LENGTH), D)
    place = mine.to(tl.int64)[:, None] * LENGTH + k[None, :]
    tl.store(grads + place, total * (upstream.to(D) * inverse), mask=(mine < count)[:, None] & (k < LENGTH)[None, :])
    if (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
        grad = -upstream * (others.to(tl.float64) / temperature + consistency)
        tl.store(grad_positives + mine, grad, mask=mine < count)


def loss_launch(batch, length, begin, count, objective, pixels, dtype) -> Launch:
    """Of `count` rows of a length from `begin` on; of the mse objective, from the positives alone, `pixels` being those
    of a view."""
    if objective == MSE.value:
        return Launch(mean_square_kernel, (1, 1, 1), {}, {"batch": batch, "pixels": float(pixels)})
    return _launch(contrast_kernel, batch, length, begin, count, dtype, OBJECTIVE=objective)


def gradients_launch(batch, length, begin, count, dtype, symmetric=False) -> Launch:
    """Of rows and keys of a length, `count` from `begin` on; symmetric: of the unit maps that both are images of."""
    grid = 1 if symmetric else 2, length
    return _launch(contrast_backward_kernel, batch, length, begin, count, dtype, *grid, SYMMETRIC=symmetric)


def _launch(kernel, batch, length, begin, count, dtype, sides=1, cells=1, **fixed) -> Launch:
    tile = contrasting(count, batch, length, dtype, kernel is contrast_kernel)
    fixed |= {"batch": batch, "begin": begin, "count": count, "LENGTH": length, "D": triton_dtype(dtype), **tile.blocks}
    return Launch(kernel, (ceil_div(count, tile.rows), sides, ceil_div(cells, tile.cells)), tile.options, fixed)


_forward, _backward = plans(loss_launch), plans(gradients_launch)


def contrast(rows, keys, positives, first, count, temperature):
    """Kernel of operator contrast."""
    counter = torch.zeros(1, dtype=torch.int32, device=rows.device)
    row_losses, loss = positives.new_empty(count), rows.new_empty(())
    launch = _forward(kind(rows, keys, positives), *rows.shape, first, count, RELEASED.value, 1, rows.dtype)
    launch(rows, keys, positives, row_losses, loss, counter, temperature, 0.0)
    return loss, row_losses


def contrast_backward(grad_loss, rows, keys, positives, row_losses, first, count, temperature):
    """Kernel of operator contrast_backward."""
    given, (batch, length) = (grad_loss, rows, keys, positives, row_losses), rows.shape
    grads = rows.new_empty(count, length), keys.new_empty(count, length), positives.new_empty(count)
    _backward(kind(*given), batch, length, first, count, rows.dtype)(*given, *grads, temperature, 0.0)
    return grads
