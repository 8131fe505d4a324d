"""What the measures check of their input, and how they give their result."""

import math

import torch
from torch import Tensor

from .. import checks
from ..options import widest_dtype
from ..tensors import described, is_dense


def check(heatmaps: Tensor, **masks: Tensor) -> Tensor:
    """The heatmaps, which are such, as are masks of them."""
    checks.heatmaps(heatmaps)
    for name, mask in masks.items():
        if not is_dense(mask) or mask.dtype != torch.bool:
            raise TypeError(f"{name} must be a bool tensor, got {described(mask)}")
        if mask.shape != heatmaps.shape:
            raise ValueError(
                f"{name} must have the heatmaps' shape, {list(heatmaps.shape)}, got {list(mask.shape)}; "
                "upsample(heatmaps, size) brings coarse heatmaps to it"
            )
    return heatmaps


def live(heatmaps: Tensor) -> Tensor:
    """Which heatmaps are finite and not zero everywhere, bool [N]; all others are dead, and are not measured.

    Example::

        >>> live(torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])).tolist()
        [True, False]
    """
    maps = check(heatmaps).flatten(1)
    return maps.isfinite().all(1) & maps.any(1)


def wide(heatmaps: Tensor) -> torch.dtype:
    """What measures are computed in."""
    return widest_dtype(heatmaps.device)


def where_known(known: Tensor, values: Tensor) -> Tensor:
    """Values [N], NaN where they are not known."""
    return torch.where(known, values, math.nan)
