"""The chain cam -> resample -> contrast -> loss of backends that work on coarse rows, from their stages."""

import torch

from .options import Options
from .transforms import CropFlip


def heatmap_loss(
    resample,
    contrast,
    heatmaps: torch.Tensor,
    aug_heatmaps: torch.Tensor,
    transform: CropFlip | torch.Tensor,
    options: Options,
    mean=torch.mean,
) -> torch.Tensor:
    """The objective on heatmaps [B, H, W], plus consistency * mean(1 - positives), by a backend's two stages.

    mean: over the samples whose mean the loss is, as is that of `contrast`.
    """
    rows, keys, positives = resample(
        heatmaps, aug_heatmaps, transform, options.image_size, options.eps, options.objective
    )
    if options.objective == "mse":
        loss = mean(_squares(positives)) / (options.image_size[0] * options.image_size[1])
    else:
        loss = contrast(rows, keys, positives, options.temperature)
    if options.consistency > 0:
        loss = loss + options.consistency * mean(1 - positives)
    return loss.to(heatmaps.dtype)


def cgc(
    cam,
    heatmap_loss,
    features: torch.Tensor,
    gradients: torch.Tensor,
    aug_features: torch.Tensor,
    aug_gradients: torch.Tensor,
    transform: CropFlip | torch.Tensor,
    options: Options,
) -> torch.Tensor:
    """The whole loss from features [B, C, H, W] and gradients of both views."""
    heatmaps = cam(features, gradients, options.weighting)
    aug_heatmaps = cam(aug_features, aug_gradients, options.weighting)
    return heatmap_loss(heatmaps, aug_heatmaps, transform, options)


def _squares(positives):
    """Square of the difference of unit maps, 2 - 2 cos.

    A cosine may exceed 1 by its rounding, a square is never negative. The cosine is 0 only where a warp sees nothing:
    its map is zero, not a unit vector, and the square is that of the other map, 1.
    """
    excess = (positives.detach() - 1).clamp_min(0)  # of the value alone: the gradient of 1 - positive stays
    return torch.where(positives == 0, 1.0, 2 * (1 - positives + excess))
