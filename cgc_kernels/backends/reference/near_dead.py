"""The gradient of near-dead heatmaps (docs/mathematics.md)."""

import torch

from ... import double_backward
from ...options import NEAR_DEAD_SUM


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
    return double_backward.apply_eagerly(_DampBothModes, heatmaps, scale)
