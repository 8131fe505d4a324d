"""What the two backends written in plain PyTorch share: autograd nodes that carry no arithmetic of the loss."""

import functools
from collections.abc import Callable

import torch

from .. import double_backward
from ..double_backward import DifferentiableOnce
from ..options import NEAR_DEAD_SUM
from .backend import Backend


class _Damp(torch.autograd.Function):
    """Identity whose gradient is multiplied by `scale`, broadcast over the trailing dimensions."""

    @staticmethod
    def forward(heatmaps, scale):
        return heatmaps.view_as(heatmaps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx, grad):
        (scale,) = ctx.saved_tensors
        return grad * scale[:, None, None], None


class _DampBothModes(_Damp):
    """In forward mode too, which Dynamo does not trace."""

    @staticmethod
    def jvp(ctx, tangent, _):
        (scale,) = ctx.saved_tensors
        return tangent * scale[:, None, None]


def damp_near_dead(heatmaps: torch.Tensor, sums: torch.Tensor, eps: float) -> torch.Tensor:
    """`heatmaps` [B, H, W], unchanged; the gradient of those whose fine sum s [B] is below s_min = 1e-3 is multiplied
    by (s + eps) / s_min, which bounds what would otherwise grow like 1 / s (docs/mathematics.md)."""
    sums = sums.detach()
    scale = torch.where(sums < NEAR_DEAD_SUM, (sums + eps) / NEAR_DEAD_SUM, torch.ones_like(sums))
    scale = scale.to(heatmaps.dtype)
    if torch.compiler.is_compiling():
        return _Damp.apply(heatmaps, scale)
    return double_backward.apply(_DampBothModes, heatmaps, scale)


def plain_backend(name: str, *stages: Callable, **others) -> Backend:
    """A backend that serves any device, of stages in the order of Backend's that PyTorch differentiates, and others."""
    return Backend(name, *(functools.partial(_guarded, stage) for stage in stages), **others)


def _guarded(stage: Callable, *args):
    """Run a stage outside autocast, and refuse double backward through its tensors.

    Not in a compiled graph, where the compiler makes the backward: it refuses a double backward where it kept an input
    of the graph, and otherwise takes the gradient for a constant, as it does for every function that it compiles.
    """
    if not torch.compiler.is_compiling():
        args = [double_backward.apply(DifferentiableOnce, a) if _needs_grad(a) else a for a in args]
    with torch.autocast(args[0].device.type, enabled=False):
        return stage(*args)


def _needs_grad(value) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad
