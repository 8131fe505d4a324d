"""How sharp heatmaps are, and what makes others as sharp."""

import math

import torch
from torch import Tensor

from .. import checks
from ..tensors import full_precision
from .inputs import check, live, wide

_POWERS = -6 * math.log(2), 6 * math.log(2)  # logarithms of the least and the largest power
_MAPS_AT_ONCE = 256


def effective_area(heatmaps: Tensor) -> Tensor:
    """exp(entropy) of each heatmap as a distribution over the pixels, as a share of the view: [N] in 0..1.

    The Hill number of order 1 (Hill, Ecology 1973): 1 for a constant heatmap; k of n pixels alight, all equally, give
    k / n.

    Example::

        >>> heatmaps = torch.zeros(1, 8, 8)
        >>> heatmaps[0, :2] = 5.0
        >>> round(effective_area(heatmaps).item(), 6)
        0.25
    """
    masses = check(heatmaps).flatten(1).to(wide(heatmaps))
    masses = masses / masses.sum(1, keepdim=True)
    return (-torch.xlogy(masses, masses).sum(1)).exp() / masses.shape[1]


def sharpen(heatmaps: Tensor, power: float) -> Tensor:
    """Heatmaps divided by their maxima, so that no power overflows or underflows as a whole, and raised to a power > 0.

    Example::

        >>> sharpen(torch.tensor([[[2.0, 4.0]]]), 2).tolist()
        [[[0.25, 1.0]]]
    """
    check(heatmaps)
    checks.scalar("power", power)
    peaks = heatmaps.amax((1, 2), keepdim=True)
    return torch.where(peaks > 0, heatmaps / peaks, heatmaps) ** power


def matching_power(heatmaps: Tensor, area: float) -> float:
    """The one power that, by :func:`sharpen`, gives all heatmaps the mean effective area ``area``, a share in 0..1.

    The area falls as the power rises. Where no power between 1/64 and 64 reaches it, the nearer end is returned; NaN
    where all heatmaps are dead. Dead ones are left out.

    Example::

        >>> heatmaps = torch.rand(4, 8, 8)
        >>> power = matching_power(heatmaps, 0.4)
        >>> round(effective_area(sharpen(heatmaps, power)).mean().item(), 4)
        0.4
    """
    maps = heatmaps[live(heatmaps)]
    if checks.scalar("area", area) > 1:
        raise ValueError(f"area must be a share of the view, > 0 and <= 1, got {area!r}")
    if not len(maps):
        return math.nan
    logs = (maps / maps.amax((1, 2), keepdim=True)).log_().clamp_(min=torch.finfo(maps.dtype).min).flatten(1)

    def excess(log_power: float) -> float:
        return torch.cat([_areas(part, math.exp(log_power)) for part in logs.split(_MAPS_AT_ONCE)]).mean().item() - area

    return math.exp(_falling_root(excess, *_POWERS, tolerance=max(torch.finfo(maps.dtype).eps, 1e-9)))


def blur(heatmaps: Tensor, sigma: float) -> Tensor:
    """Heatmaps under a Gaussian of ``sigma`` cells, cut off at 3 sigma; at the border the weights inside make up 1.

    Meant for Grad-CAM's coarse heatmaps, as a control: neighbours count, and what is lit alone counts less.

    Example::

        >>> blur(torch.ones(1, 7, 7), 1.0).allclose(torch.ones(1, 7, 7))
        True
    """
    check(heatmaps)
    checks.scalar("sigma", sigma)
    for side in (1, 2):
        cells = torch.arange(heatmaps.shape[side], device=heatmaps.device, dtype=heatmaps.dtype)
        distance = cells[:, None] - cells
        weights = torch.where(distance.abs() <= math.ceil(3 * sigma), torch.exp(-((distance / sigma) ** 2) / 2), 0)
        weights = weights / weights.sum(1, keepdim=True)
        with full_precision(heatmaps):
            heatmaps = weights @ heatmaps if side == 1 else heatmaps @ weights.T
    return heatmaps


def _areas(logs: Tensor, power: float) -> Tensor:
    """Effective areas of the heatmaps exp(power * logs), of logarithms [N, P] that are 0 at the maximum."""
    masses, dtype = (power * logs).exp_(), wide(logs)
    sums = masses.sum(1, dtype=dtype)
    return (sums.log() - power * masses.mul_(logs).sum(1, dtype=dtype) / sums).exp() / logs.shape[1]


def _falling_root(function, low: float, high: float, tolerance: float) -> float:
    """Where a falling function is 0, by false position (Illinois); the nearer end where it is 0 nowhere between."""
    at_low, at_high = function(low), function(high)
    if at_low <= 0 or at_high >= 0:
        return low if at_low <= 0 else high
    side = 0
    for _ in range(100):
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = function(middle)
        if abs(value) < tolerance:
            break
        if value > 0:
            low, at_low, at_high = middle, value, at_high / 2 if side == 1 else at_high
        else:
            high, at_high, at_low = middle, value, at_low / 2 if side == -1 else at_low
        side = 1 if value > 0 else -1
    return middle
