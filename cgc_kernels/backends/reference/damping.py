"""The gradients of near-dead heatmaps and of near-blind views (docs/mathematics.md, section 1)."""

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
    return _damp(heatmaps, torch.where(sums < NEAR_DEAD_SUM, (sums + eps) / NEAR_DEAD_SUM, torch.ones_like(sums)))


def damp_near_blind(maps: torch.Tensor, norms: torch.Tensor, eps: float) -> torch.Tensor:
    """`maps` [B, S_h, S_w], unchanged; the gradient of views whose norm ||T(m)|| [B] is below eps is multiplied by
    ||T(m)|| / eps: a view that sees less and less of a pixel goes dark without a jump (docs/mathematics.md)."""
    return _damp(maps, (norms.detach() / eps).clamp_max(1))


def _damp(maps, scale):
    scale = scale.to(maps.dtype)
    if torch.compiler.is_compiling():
        return _Damp.apply(maps, scale)
    return double_backward.apply_eagerly(_DampBothModes, maps, scale)
