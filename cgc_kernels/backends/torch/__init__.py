"""The loss as exact H x W algebra in plain PyTorch: the fallback that runs on any device."""

from ..plain import entry_point
from .cam import cam
from .cgc import cgc, heatmap_loss
from .contrast import contrast
from .resample import resample

entry_points = {"cam": entry_point(cam), "heatmap_loss": entry_point(heatmap_loss), "cgc": entry_point(cgc)}

__all__ = ["cam", "cgc", "contrast", "entry_points", "heatmap_loss", "resample"]
