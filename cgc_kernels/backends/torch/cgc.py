"""The chain: cam, resample, contrast."""

import torch

from ...options import Options
from ...transforms import CropFlip
from .cam import cam
from .contrast import contrast
from .resample import resample


def heatmap_loss(
    heatmaps: torch.Tensor, aug_heatmaps: torch.Tensor, transform: CropFlip | torch.Tensor, options: Options
) -> torch.Tensor:
    """The objective on heatmaps [B, H, W], plus consistency * mean(1 - positives)."""
    rows, keys, positives = resample(
        heatmaps, aug_heatmaps, transform, options.image_size, options.eps, options.objective
    )
    if options.objective == "mse":
        height, width = options.image_size
        loss = 2 * (1 - positives).clamp_min(0).mean() / (height * width)
    else:
        loss = contrast(rows, keys, positives, options.temperature)
    if options.consistency > 0:
        loss = loss + options.consistency * (1 - positives).mean()
    return loss.to(heatmaps.dtype)


def cgc(
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
