"""Negatives from every rank of a process group: what the loss gathers, and the gradient that DDP's average needs.

Every rank gathers the rows, keys and positives of all ranks, [B, H * W] and [B] each, and contrasts its own rows with
all keys. The row losses then travel as well: their mean is the loss, and with them a rank has all that its own gradient
needs, of its rows against all keys and of its keys against all rows: nothing travels in the backward, and no work is
done twice. Backend `reference`, which is to be read, contrasts all rows on every rank instead. Other terms of the loss
are means of the ranks' own samples, of which only sums travel.

DistributedDataParallel averages gradients over the W ranks, where the gradient of one global mean is the sum over them:
each rank therefore returns W times its own part.
"""

import functools
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from . import chain, double_backward
from .backends.backend import Backend
from .tensors import full_precision


def over(backend: Backend, group: "dist.ProcessGroup", even: bool) -> Backend:
    """`backend` whose losses are means over the samples of all ranks of a group, with negatives from all.

    even: every rank has the same number of samples, which then is not exchanged, so the host never waits for a GPU.
    """
    shared = _ContrastOfOwn.apply if backend.row_losses else _contrast_of_all
    contrast, mean = functools.partial(shared, backend, group, even), functools.partial(_MeanOverRanks.apply, group)
    heatmap_loss = functools.partial(chain.heatmap_loss, backend.resample, contrast, mean=mean)
    losses = {"heatmap_loss": heatmap_loss, "cgc": functools.partial(chain.cgc, backend.cam, heatmap_loss)}
    return replace(backend, **{name: functools.partial(_eager, loss) for name, loss in losses.items()})


# Collectives whose sizes are data have no place in a graph.
@torch.compiler.disable(reason="group= communicates in eager mode")
def _eager(loss, *args):
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError("a loss with group= must be differentiated by torch.autograd, got a transform of torch.func")
    for value in args:
        if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise RuntimeError("a loss with group= must be differentiated in reverse mode, got a forward-mode tangent")
    with full_precision(args[0]):
        return loss(*args)


class _ContrastOfOwn(torch.autograd.Function):
    """Mean loss of all ranks' rows; the gradient is that of the own part, times W."""

    @staticmethod
    def forward(ctx, backend, group, even, rows, keys, positives, temperature):
        sizes, first = _sizes(rows, group, even)
        ctx.backend, ctx.share = backend, (first, len(rows), temperature)
        everyone = _gather((rows, keys, positives), sizes, group)
        (losses,) = _gather((backend.row_losses(*everyone, *ctx.share),), sizes, group)
        ctx.world = len(sizes)
        ctx.save_for_backward(rows, keys, positives, *everyone, losses)
        return losses.mean().to(rows.dtype)

    @staticmethod
    def backward(ctx, grad_loss):
        rows, keys, positives, *everyone = ctx.saved_tensors
        with torch.no_grad():
            grads = ctx.backend.row_gradients(ctx.world * grad_loss, *everyone, *ctx.share)
        if torch.is_grad_enabled():  # create_graph=True
            grads = double_backward.refused(grads, (grad_loss, rows, keys, positives))
        return None, None, None, *grads, None


def _contrast_of_all(backend, group, even, rows, keys, positives, temperature):
    """The same by a backend that contrasts all rows, on every rank."""
    return backend.contrast(*_Gather.apply(group, even, rows, keys, positives), temperature)


class _Gather(torch.autograd.Function):
    """Tensors [B, ...] of every rank, those of rank 0 first; the gradient is that of the own part, times W."""

    @staticmethod
    def forward(ctx, group, even, *tensors):
        sizes, first = _sizes(tensors[0], group, even)
        ctx.own, ctx.world = slice(first, first + len(tensors[0])), len(sizes)
        return tuple(_gather(tensors, sizes, group))

    @staticmethod
    def backward(ctx, *grads):
        return None, None, *(ctx.world * grad[ctx.own] for grad in grads)


class _MeanOverRanks(torch.autograd.Function):
    """Mean of the values [B] of all ranks; the gradient is that of the own part, times W."""

    @staticmethod
    def forward(ctx, group, values):
        total = torch.stack([values.sum(dtype=torch.float64), values.new_full((), len(values), dtype=torch.float64)])
        dist.all_reduce(total, group=group)
        ctx.own, ctx.world = len(values), dist.get_world_size(group)
        ctx.save_for_backward(total[1])
        return (total[0] / total[1]).to(values.dtype)

    @staticmethod
    def backward(ctx, grad):
        (count,) = ctx.saved_tensors
        return None, (ctx.world * grad / count).expand(ctx.own)


def _sizes(own: Tensor, group, even: bool) -> tuple[list[int], int]:
    """Samples of every rank, and how many those before this one have."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    sizes = [len(own)] * world if even else _all_sizes(len(own), own.device, group)
    return sizes, sum(sizes[:rank])


def _all_sizes(own: int, device: torch.device, group) -> list[int]:
    sizes = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=device)
    dist.all_gather(list(sizes.split(1)), torch.tensor([own], device=device), group=group)
    return sizes.tolist()


def _gather(tensors: tuple[Tensor, ...], sizes: list[int], group) -> list[Tensor]:
    """All ranks' tensors in one collective: their bytes side by side, [B, bytes], padded to the largest rank's B."""
    columns = [tensor.detach().flatten(1) if tensor.dim() > 1 else tensor.detach()[:, None] for tensor in tensors]
    parts = [column.contiguous().view(torch.uint8) for column in columns]
    largest, width = max(sizes), sum(part.shape[1] for part in parts)
    sent = torch.zeros(largest, width, dtype=torch.uint8, device=tensors[0].device)
    torch.cat(parts, dim=1, out=sent[: len(tensors[0])])
    received = sent.new_empty(len(sizes) * largest, width)
    dist.all_gather(list(received.split(largest)), sent, group=group)
    if min(sizes) < largest:
        received = torch.cat([rank[:size] for rank, size in zip(received.split(largest), sizes, strict=True)])
    split = received.split([part.shape[1] for part in parts], dim=1)
    return [
        part.contiguous().view(tensor.dtype).view(len(received), *tensor.shape[1:])
        for part, tensor in zip(split, tensors, strict=True)
    ]
