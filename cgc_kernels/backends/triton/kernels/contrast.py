"""Stage contrast: rows, keys, positives -> loss, in tiles of similarities; [B, B] is never stored.

Logits are taken relative to the positive, whose own is then 0; a running maximum serves any temperature. The backward
recomputes the tiles from the row losses.
"""

import functools

import torch
import triton
import triton.language as tl

from .geometry import product
from .launch import REGISTERS, WARPS, ceil_div, triton_dtype
from .resample import MSE

# Cells that a tile of similarities takes at once, and cells whose gradient a program sums.
BLOCK_K = 32
# Rows of a program: as few as a dot product takes, for a batch has few of them.
BLOCK_M = 16
BLOCK_N = 64
# Row losses that the last program sums at once.
SUM = tl.constexpr(1024)


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


@triton.jit(do_not_specialize=["batch", "begin", "count"])
def contrast_kernel(
    rows, keys, positives, row_losses, loss, counter, batch, begin, count,
    temperature: tl.float64, consistency: tl.float64,
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
def mean_square_kernel(loss, row_losses, positives, batch, consistency: tl.float64, pixels: tl.float64):
    """Loss of the mse objective, whose row losses are zero."""
    for first in range(0, batch, SUM):
        i = first + tl.arange(0, SUM)
        tl.store(row_losses + i, 0.0, mask=i < batch)
    store_loss(loss, row_losses, positives, batch, consistency, pixels, MSE)


@triton.jit(do_not_specialize=["batch", "begin", "count"])
def contrast_backward_kernel(
    grad_loss, rows, keys, positives, row_losses, grad_rows, grad_keys, grad_positives, batch, begin, count,
    temperature: tl.float64, consistency: tl.float64,
    LENGTH: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients of some cells of a block of rows, or of keys, and of the rows' positives; of those from `begin` on.

    A similarity's weight is its probability among the logits of the row that owns it, times grad_loss / (tau B).
    """
    own = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i = begin + own
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
    inverse = 1 / (tl.zeros([1, 1], tl.float64) + temperature)
    upstream = tl.load(grad_loss).to(tl.float64) / batch
    scale = (upstream * inverse).to(D)
    inverse = inverse.to(D)
    total = tl.zeros([BLOCK_M, BLOCK_K], D)
    others = tl.zeros([BLOCK_M], D)
    for first in range(0, batch, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        positive = tl.where(of_keys, tl.load(positives + j, mask=j < batch, other=0).to(D)[None, :], own_positive)
        row_loss = tl.where(of_keys, tl.load(row_losses + j, mask=j < batch, other=0).to(D)[None, :], own_loss)
        logit = (similarities(left, right, i, j, batch, LENGTH, BLOCK_K, D) - positive) * inverse - row_loss
        negative = (i < batch)[:, None] & (j < batch)[None, :] & (i[:, None] != j[None, :])
        weight = tl.exp(tl.where(negative, logit, float("-inf"))) * scale
        total += product(weight, load_rows(right, j[:, None], k[None, :], batch, LENGTH), D)
        others += tl.sum(weight, axis=1)
    place = own.to(tl.int64)[:, None] * LENGTH + k[None, :]
    tl.store(grads + place, total, mask=(own < count)[:, None] & (k < LENGTH)[None, :])
    if (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
        grad = -others.to(tl.float64) - consistency * upstream
        tl.store(grad_positives + own, grad, mask=own < count)


@functools.cache
def constants(length: int, dtype: torch.dtype) -> dict:
    """Compile-time arguments of the kernels, and their options; not to be changed."""
    columns = BLOCK_N * 4 // dtype.itemsize
    blocks = {"BLOCK_K": BLOCK_K, "BLOCK_M": BLOCK_M, "BLOCK_N": columns}
    return {"LENGTH": length, **blocks, "D": triton_dtype(dtype), "num_warps": WARPS, "maxnreg": REGISTERS}


def contrast_loss(rows, keys, positives, row_losses, first, length, temperature, consistency, counter, objective):
    """Launch the forward on rows of a length, from `first` on as many as row_losses, which it stores.

    counter: a zero, int32.
    """
    batch, count, loss = len(positives), len(row_losses), rows.new_empty(())
    contrast_kernel[(ceil_div(count, BLOCK_M),)](
        rows, keys, positives, row_losses, loss, counter, batch, first, count, temperature, consistency,
        OBJECTIVE=objective, **constants(length, rows.dtype),
    )  # fmt: skip
    return loss


def mean_square_loss(positives, row_losses, size, consistency, dtype):
    """Launch the forward of the mse objective."""
    loss = positives.new_empty((), dtype=dtype)
    mean_square_kernel[(1,)](loss, row_losses, positives, len(positives), consistency, float(size[0] * size[1]))
    return loss


def contrast_gradients(grad_loss, rows, keys, positives, row_losses, first, count, length, temperature, consistency):
    """Launch the backward on rows of a length, `count` from `first` on.

    grad_positives include the consistency term's.
    """
    sizes = count * length, count * length, count
    grads = tuple(t.new_empty(size) for t, size in zip((rows, keys, positives), sizes, strict=True))
    contrast_backward_kernel[(ceil_div(count, BLOCK_M), 2, ceil_div(length, BLOCK_K))](
        grad_loss, rows, keys, positives, row_losses, *grads, len(positives), first, count, temperature, consistency,
        **constants(length, rows.dtype),
    )  # fmt: skip
    return grads


def contrast(rows, keys, positives, first, count, temperature):
    """Kernel of operator contrast."""
    counter = torch.zeros(1, dtype=torch.int32, device=rows.device)
    row_losses = positives.new_empty(count)
    length = rows.shape[1]
    return contrast_loss(rows, keys, positives, row_losses, first, length, temperature, 0.0, counter, 0), row_losses


def contrast_backward(grad_loss, rows, keys, positives, row_losses, first, count, temperature):
    """Kernel of operator contrast_backward."""
    tensors, length = (rows, keys, positives, row_losses), rows.shape[1]
    grad_rows, grad_keys, grad_positives = contrast_gradients(
        grad_loss, *tensors, first, count, length, temperature, 0.0
    )
    return grad_rows.view(count, length), grad_keys.view(count, length), grad_positives
