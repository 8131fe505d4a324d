"""The loss as the released code computes it, literally, on the fine S_h x S_w grid.

Written to be read: the oracle of the tests and a peer of the benchmarks, nothing else.
"""

from ..plain import plain_backend
from .cam import cam
from .cgc import cgc, heatmap_loss
from .contrast import contrast
from .resample import resample

BACKEND = plain_backend("reference", cam, resample, contrast, heatmap_loss, cgc)
