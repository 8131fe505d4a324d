"""Contrastive Grad-CAM consistency (CGC): a training loss for consistent explanations, nearly free.

The three lines for a training script are in the README; ``python -m cgc_kernels`` tells what this installation has.
"""

from . import metrics
from ._version import __version__
from .backends import info
from .grad_cam import CAM, GradCAM, GradCAMOutput, tokens_to_map
from .loss import CGCLoss, cgc_loss, gradcam, heatmap_loss
from .pictures import log_heatmaps, overlay
from .recording import homography, record
from .transforms import CropFlip, RandomCropFlip

__all__ = [
    "CAM",
    "CGCLoss",
    "CropFlip",
    "GradCAM",
    "GradCAMOutput",
    "RandomCropFlip",
    "__version__",
    "cgc_loss",
    "gradcam",
    "heatmap_loss",
    "homography",
    "info",
    "log_heatmaps",
    "metrics",
    "overlay",
    "record",
    "tokens_to_map",
]
