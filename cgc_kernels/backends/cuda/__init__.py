"""The loss as one CUDA kernel each way (csrc/cuda), through the operators of :mod:`cgc_kernels.ops`.

The same operators as the C++ backend's: a tensor's device says whose kernels run.
"""

from ...ops import compiled
from .. import fused

cam, resample, contrast, heatmap_loss, cgc = compiled
entry_points = fused.entry_points("cuda", compiled)

__all__ = ["cam", "cgc", "contrast", "entry_points", "heatmap_loss", "resample"]
