"""The loss as fused C++ kernels on the CPU (csrc/cpu), through the operators of :mod:`cgc_kernels.ops`."""

from ...ops import compiled
from .. import fused

cam, resample, contrast, heatmap_loss, cgc = compiled
entry_points = fused.entry_points("cpp", compiled)

__all__ = ["cam", "cgc", "contrast", "entry_points", "heatmap_loss", "resample"]
