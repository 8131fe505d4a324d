"""Stage resample: heatmaps, transform -> unit rows and positives, as H x W algebra (docs/mathematics.md, section 2)."""

import torch

from ..options import MSE, OBJECTIVES, contrasts
from ..transforms import CropFlip
from .library import StageOperators

# Of a sample, each [H, W]. What they hold is the kernels' own affair; the backward starts from them.
STATE_MAPS = 3


def resample(
    run,
    heatmaps: torch.Tensor,
    aug_heatmaps: torch.Tensor,
    transform: CropFlip | torch.Tensor,
    image_size: tuple[int, int],
    eps: float,
    objective: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit coarse rows [B, H * W], keys [B, H * W] and positives [B] (float64) of heatmaps [B, H, W]."""
    settings = (*image_size, eps, OBJECTIVES.index(objective))
    return run(heatmaps.contiguous(), aug_heatmaps.contiguous(), transform_tensors(transform), *settings)


def transform_tensors(transform: CropFlip | torch.Tensor) -> list[torch.Tensor]:
    """For the operators: the fields of a crop as they are, or one tensor of inverse matrices, float64 [B, 3, 3]."""
    return list(transform) if isinstance(transform, CropFlip) else [transform.double().contiguous()]


def state_dtype(heatmaps: torch.Tensor, objective: int) -> torch.dtype:
    """float64 for the mse objective, whose 1 - positive cancels; the heatmaps' otherwise."""
    return torch.float64 if objective == MSE else heatmaps.dtype


def empty_outputs(heatmaps: torch.Tensor, objective: int) -> tuple[torch.Tensor, ...]:
    """Rows, keys, positives and state, yet to be written; fake ones of fake heatmaps."""
    batch, height, width = heatmaps.shape
    rows = heatmaps.new_empty((batch, height * width if contrasts(objective) else 0))
    positives = heatmaps.new_empty(batch, dtype=torch.float64)
    state = heatmaps.new_empty((batch, STATE_MAPS, height, width), dtype=state_dtype(heatmaps, objective))
    return rows, torch.empty_like(rows), positives, state


def _fake(heatmaps, aug_heatmaps, transform, height, width, eps, objective):
    return empty_outputs(heatmaps, objective)


def _fake_backward(grad_rows, grad_keys, grad_positives, heatmaps, aug_heatmaps, *_):
    return torch.empty_like(heatmaps), torch.empty_like(aug_heatmaps)


def _setup_context(ctx, inputs, output):
    heatmaps, aug_heatmaps, transform, *ctx.settings = inputs
    ctx.save_for_backward(heatmaps, aug_heatmaps, *output, *transform)


def _backward(operator, ctx, saved, *grads):
    heatmaps, aug_heatmaps, rows, keys, positives, state, *transform = saved
    upstream = (grad.contiguous() for grad in grads)
    return operator(*upstream, heatmaps, aug_heatmaps, rows, keys, positives, transform, state, *ctx.settings)


_SETTINGS = "int height, int width, float eps, int objective"
OPERATORS = StageOperators(
    "resample",
    f"(Tensor heatmaps, Tensor aug_heatmaps, Tensor[] transform, {_SETTINGS}) "
    "-> (Tensor rows, Tensor keys, Tensor positives, Tensor state)",
    _fake,
    "(Tensor grad_rows, Tensor grad_keys, Tensor grad_positives, Tensor heatmaps, Tensor aug_heatmaps, Tensor rows, "
    f"Tensor keys, Tensor positives, Tensor[] transform, Tensor state, {_SETTINGS}) "
    "-> (Tensor grad_heatmaps, Tensor grad_aug_heatmaps)",
    _fake_backward,
    _setup_context,
    _backward,
    outputs=3,
)
