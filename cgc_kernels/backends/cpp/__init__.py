"""The loss as fused C++ kernels on the CPU (csrc/cpu), through the operators of :mod:`cgc_kernels.ops`."""

from ...ops import cam, cgc, contrast, heatmap_loss, resample

entry_points = {"cam": cam, "heatmap_loss": heatmap_loss, "cgc": cgc}

__all__ = ["cam", "cgc", "contrast", "entry_points", "heatmap_loss", "resample"]
