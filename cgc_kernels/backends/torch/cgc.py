"""The chain: cam, resample, contrast."""

import functools

import torch

from ... import chain
from ...options import Options
from ...transforms import CropFlip
from .cam import cam
from .contrast import contrast
from .resample import resample

heatmap_loss = functools.partial(chain.heatmap_loss, resample, contrast)


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
