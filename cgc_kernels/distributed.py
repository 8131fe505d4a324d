"""Negatives from every rank of a process group: what the loss gathers, and the gradient that DDP's average needs.

Every rank gathers the rows, keys and positives of all ranks, [B, H * W] and [B] each, and computes the same global
mean. Own rows are in it as rows and as other samples' keys, so one rank has all that its own gradient needs: nothing
travels in the backward. DistributedDataParallel averages gradients over the W ranks, where the gradient of one global
mean is the sum over them: each rank therefore returns W times its own part.
"""

import functools
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from . import chain
from .backends.backend import Backend


def over(backend: Backend, group: "dist.ProcessGroup", even: bool) -> Backend:
    """`backend` over the samples of all ranks of a group: its rows, keys and positives are all ranks'.

    even: every rank has the same number of samples, which then is not exchanged, so the host never waits for a GPU.
    """
    resample = functools.partial(_resample, backend.resample, group, even)
    heatmap_loss = functools.partial(chain.heatmap_loss, resample, backend.contrast)
    cgc = functools.partial(chain.cgc, backend.cam, heatmap_loss)
    losses = {"heatmap_loss": heatmap_loss, "cgc": cgc}
    return replace(
        backend, resample=resample, **{name: functools.partial(_eager, loss) for name, loss in losses.items()}
    )


def _resample(resample, group, even, *args):
    return _Gather.apply(group, even, *resample(*args))


# Collectives whose sizes are data have no place in a graph.
@torch.compiler.disable(reason="group= communicates in eager mode")
def _eager(loss, *args):
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError("a loss with group= must be differentiated by torch.autograd, got a transform of torch.func")
    for value in args:
        if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise RuntimeError("a loss with group= must be differentiated in reverse mode, got a forward-mode tangent")
    with torch.autocast(args[0].device.type, enabled=False):
        return loss(*args)


class _Gather(torch.autograd.Function):
    """Tensors [B, ...] of every rank, those of rank 0 first; the gradient is that of the own part, times W."""

    @staticmethod
    def forward(ctx, group, even, *tensors):
        own, rank, world = len(tensors[0]), dist.get_rank(group), dist.get_world_size(group)
        sizes = [own] * world if even else _all_sizes(own, tensors[0].device, group)
        first = sum(sizes[:rank])
        ctx.own, ctx.world = slice(first, first + own), world
        return tuple(_gather(tensors, sizes, group))

    @staticmethod
    def backward(ctx, *grads):
        return None, None, *(ctx.world * grad[ctx.own] for grad in grads)


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
