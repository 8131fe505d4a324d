"""torch.library operators of the compiled kernels, one file per stage.

Schema, fake kernel and autograd are defined here in Python and exist without the compiled library, which only adds the
kernels. What a backward needs beside the inputs is an extra output of its forward, without a gradient.
"""

from .cam import cam
from .cgc import cgc, heatmap_loss
from .contrast import contrast
from .library import processor, unavailable, versions
from .resample import resample

__all__ = ["cam", "cgc", "contrast", "heatmap_loss", "processor", "resample", "unavailable", "versions"]
