"""Stage resample: heatmaps, transform -> unit rows and positives, as H x W algebra (docs/mathematics.md, section 2)."""

import functools

import torch

from ..options import OBJECTIVES
from ..transforms import CropFlip
from .library import Namespace

# Per sample: P_y o P_x^T, Q_y o Q_x and P_y^T a P_x (or the warp's counterparts), which the backward starts from.
STATE_MAPS = 3


def define(namespace: Namespace):
    """Define the stage's operators; returns the stage as a function."""
    backward = namespace.define("resample_backward", _BACKWARD_SCHEMA, _fake_backward)
    return functools.partial(
        resample, namespace.define("resample", _SCHEMA, _fake, _setup_context, functools.partial(_backward, backward))
    )


def resample(
    operator,
    heatmaps: torch.Tensor,
    aug_heatmaps: torch.Tensor,
    transform: CropFlip | torch.Tensor,
    image_size: tuple[int, int],
    eps: float,
    objective: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit coarse rows [B, H * W], keys [B, H * W] and positives [B] (float64) of heatmaps [B, H, W]."""
    settings = (*image_size, eps, OBJECTIVES.index(objective))
    return operator(heatmaps.contiguous(), aug_heatmaps.contiguous(), pack(transform), *settings)[:3]


def pack(transform: CropFlip | torch.Tensor) -> torch.Tensor:
    """One tensor for the kernels: int64 [B, 5] (top, left, height, width, flip), or float64 matrices [B, 3, 3]."""
    if isinstance(transform, CropFlip):
        return torch.stack([field.to(torch.int64) for field in transform], dim=1)
    return transform.double().contiguous()


def fake_rows(heatmaps, objective):
    """Fake rows, keys, positives and state; the mse objective has no use for rows."""
    batch, height, width = heatmaps.shape
    rows = heatmaps.new_empty((batch, 0 if OBJECTIVES[objective] == "mse" else height * width))
    positives = heatmaps.new_empty(batch, dtype=torch.float64)
    state = heatmaps.new_empty((batch, STATE_MAPS, height, width), dtype=torch.float64)
    return rows, torch.empty_like(rows), positives, state


def _fake(heatmaps, aug_heatmaps, transform, height, width, eps, objective):
    return fake_rows(heatmaps, objective)


def _fake_backward(grad_rows, grad_keys, grad_positives, heatmaps, aug_heatmaps, *_):
    return torch.empty_like(heatmaps), torch.empty_like(aug_heatmaps)


def _setup_context(ctx, inputs, output):
    heatmaps, aug_heatmaps, transform, *ctx.settings = inputs
    state = output[3]
    ctx.mark_non_differentiable(state)
    ctx.save_for_backward(heatmaps, aug_heatmaps, transform, state)


def _backward(operator, ctx, grad_rows, grad_keys, grad_positives, _):
    upstream = (g.contiguous() for g in (grad_rows, grad_keys, grad_positives))
    return *operator(*upstream, *ctx.saved_tensors, *ctx.settings), None, None, None, None, None


_SETTINGS = "int height, int width, float eps, int objective"
_SCHEMA = (
    f"(Tensor heatmaps, Tensor aug_heatmaps, Tensor transform, {_SETTINGS}) "
    "-> (Tensor rows, Tensor keys, Tensor positives, Tensor state)"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad_rows, Tensor grad_keys, Tensor grad_positives, Tensor heatmaps, Tensor aug_heatmaps, "
    f"Tensor transform, Tensor state, {_SETTINGS}) -> (Tensor grad_heatmaps, Tensor grad_aug_heatmaps)"
)
