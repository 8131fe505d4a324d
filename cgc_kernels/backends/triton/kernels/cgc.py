"""The three stages chained, a launch each: cam, resample, contrast with the mean; and back."""

from typing import NamedTuple

import torch

from ....ops.cam import pools
from ....ops.cgc import saved_bytes
from ....options import accumulation_dtype
from .cam import partial_sums, views_backward
from .contrast import contrast_gradients, contrast_loss, mean_square_loss
from .resample import MSE, maps_backward, resample_maps


class Saved(NamedTuple):
    """The parts of what operator cgc saves, as it lays them out (ops/cgc.py), each of them flat."""

    positives: torch.Tensor  # [B]
    row_losses: torch.Tensor  # [B]
    weights: torch.Tensor  # [2, B, C], or empty
    heatmaps: torch.Tensor  # [2, B, H, W]
    rows: torch.Tensor  # [B, H * W], or empty; so the keys
    keys: torch.Tensor
    state: torch.Tensor  # [B, 3, H, W]


def parts_of(saved: torch.Tensor, features: torch.Tensor, pooled: bool, objective: int) -> Saved:
    """Views of its parts."""
    wide, acc = torch.float64, accumulation_dtype(features)
    parts = saved.split(saved_bytes(features, pooled, objective))
    dtypes = (wide, wide, acc, acc, acc, acc, wide if objective == MSE.value else acc)
    return Saved(*(part.view(dtype) for part, dtype in zip(parts, dtypes, strict=True)))


def cgc(
    features, gradients, aug_features, aug_gradients, transform, height, width, temperature, elementwise, objective,
    consistency, eps,
):  # fmt: skip
    """Kernel of operator cgc."""
    size, side, pooled = (height, width), features.shape[2:], pools(gradients, elementwise)
    saved = features.new_empty(sum(saved_bytes(features, pooled, objective)), dtype=torch.uint8)
    parts = parts_of(saved, features, pooled, objective)
    sums = partial_sums([(features, gradients), (aug_features, aug_gradients)], elementwise, parts.weights)
    counter = features.new_empty(1, dtype=torch.int32)
    outputs = parts.rows, parts.keys, parts.positives, parts.state
    resample_maps(
        sums[0], sums[1], parts.heatmaps, sums.shape[2], side, transform, size, eps, objective, counter, outputs
    )
    losses = parts.positives, parts.row_losses
    if objective == MSE.value:
        return mean_square_loss(*losses, size, consistency, sums.dtype), saved
    rows, length = (parts.rows, parts.keys), side[0] * side[1]
    return contrast_loss(*rows, *losses, 0, length, temperature, consistency, counter, objective), saved


def cgc_backward(
    grad_loss, features, gradients, aug_features, aug_gradients, transform, saved, height, width, temperature,
    elementwise, objective, consistency, eps, needs,
):  # fmt: skip
    """Kernel of operator cgc_backward."""
    batch, _, *side = features.shape
    # Their length tells whether weights were saved; these come back as pooled gradients.
    pooled = len(saved) == sum(saved_bytes(features, True, objective))
    parts, mse = parts_of(saved, features, pooled, objective), objective == MSE.value
    upstream = parts.rows, parts.keys, parts.positives
    if not mse:
        length = side[0] * side[1]
        upstream = contrast_gradients(
            grad_loss, *upstream, parts.row_losses, 0, batch, length, temperature, consistency
        )
    heatmaps = parts.heatmaps.view(2, batch, *side)
    grads = torch.empty_like(heatmaps)
    upstream = (*upstream, grad_loss, parts.positives)
    maps_backward(
        upstream, heatmaps.unbind(), transform, parts.state, grads.unbind(), (height, width), eps, consistency,
        objective, from_loss=mse,
    )  # fmt: skip
    return views_backward(grads, heatmaps, [(features, gradients), (aug_features, aug_gradients)], needs)
