"""The loss as the released code computes it, literally, on the fine S_h x S_w grid.

Written to be read: the oracle of the tests and a peer of the benchmarks, nothing else.
"""

from ..plain import entry_point
from .cam import cam
from .cgc import cgc, heatmap_loss
from .contrast import contrast
from .resample import resample

entry_points = {"cam": entry_point(cam), "heatmap_loss": entry_point(heatmap_loss), "cgc": entry_point(cgc)}

__all__ = ["cam", "cgc", "contrast", "entry_points", "heatmap_loss", "resample"]
