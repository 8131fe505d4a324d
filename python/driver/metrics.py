"""What is measured, each with its definition. Everything is returned in percent.

Heatmaps come in two resolutions: coarse [N, H, W] as Grad-CAM makes them, fine [N, S, S] resized bilinearly to the
image. A heatmap that is zero everywhere is dead: it is counted by :func:`dead` and left out of the means of all other
measures except twin retrieval, where it fails.

Sharper heatmaps score better in some measures and worse in others without looking anywhere else, so those measures have
a control: the same number for the baseline's heatmaps after :func:`match_sharpness`.
"""

import math

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from cgc_kernels import CropFlip

from .views import apply_crops

POINTING_TOLERANCE = 15 / 224  # of the image side: 15 px at 224, 4.3 px at 64
TWIN_BATCH = 50
POWERS = (2.0**-6, 2.0**6)


def fine(heatmaps: Tensor, size: int) -> Tensor:
    """Coarse [N, H, W] -> fine [N, size, size], bilinear, align_corners=False."""
    return interpolate(heatmaps[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]


def box_masks(boxes: Tensor, size: int) -> Tensor:
    """Boxes [N, 4] (left, top, right, bottom; right and bottom excluded) -> bool [N, size, size], true inside."""
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    pixel = torch.arange(size, device=boxes.device)
    rows, columns = (pixel >= top) & (pixel < bottom), (pixel >= left) & (pixel < right)
    return rows[:, :, None] & columns[:, None, :]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label's. logits [N, K], labels [N]."""
    return _percent(logits.argmax(1) == labels)


def dead(heatmaps: Tensor) -> float:
    """Share of heatmaps [N, H, W] that are zero everywhere."""
    return _percent(~_live(heatmaps))


def content_shares(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """Share of each fine heatmap's mass that lies inside the box, float64 [N] in 0..1; NaN for dead heatmaps."""
    masses = heatmaps.double()
    return (masses * box_masks(boxes, heatmaps.shape[-1])).sum((1, 2)) / masses.sum((1, 2))


def content_heatmap(heatmaps: Tensor, boxes: Tensor) -> float:
    """Content Heatmap (Pillai et al., 2022): mean of :func:`content_shares` over the live heatmaps."""
    return 100 * content_shares(heatmaps, boxes).nanmean().item()


def flat_content_heatmap(boxes: Tensor, size: int) -> float:
    """Content Heatmap of a constant heatmap: the box's share of the image, mean over all images."""
    return _percent(box_masks(boxes, size))


def effective_area(heatmaps: Tensor) -> float:
    """exp(entropy) of the fine heatmap taken as a distribution, as a share of the image; mean over the live heatmaps.

    100 for a constant heatmap; k of n pixels alight, all equally, give 100 k / n.
    """
    masses = heatmaps[_live(heatmaps)].double().flatten(1)
    masses = masses / masses.sum(1, keepdim=True)
    entropy = -torch.xlogy(masses, masses).sum(1)
    return 100 * entropy.exp().mean().item() / masses.shape[1]


def pointing_game(heatmaps: Tensor, boxes: Tensor, labels: Tensor) -> float:
    """Share of live fine heatmaps whose maximum lies at most 15/224 of the image side outside the box.

    The distance is Euclidean, from the maximum to the nearest pixel of the box (Zhang et al., 2018). The mean of the
    per-class shares is returned, over the classes that have a live heatmap.
    """
    size, live = heatmaps.shape[-1], _live(heatmaps)
    peak = heatmaps.flatten(1).argmax(1)
    row, column = peak // size, peak % size
    left, top, right, bottom = boxes.unbind(1)
    across = torch.maximum(left - column, column - (right - 1)).clamp(min=0)
    down = torch.maximum(top - row, row - (bottom - 1)).clamp(min=0)
    hits = torch.hypot(across.double(), down.double()) <= POINTING_TOLERANCE * size
    shares = [_percent(hits[live & (labels == label)]) for label in labels[live].unique()]
    return sum(shares) / len(shares) if shares else math.nan


def consistency(heatmaps: Tensor, aug_heatmaps: Tensor, crops: CropFlip) -> float:
    """Mean cosine between the augmented view's fine heatmap and the original's fine heatmap, cropped alike.

    Pairs in which either is dead, or in which the crop holds none of the original's mass, are left out.
    """
    twins = apply_crops(heatmaps[:, None], crops)[:, 0]
    cosines = (_unit(twins) * _unit(aug_heatmaps)).sum(1)
    return 100 * cosines[_live(twins) & _live(aug_heatmaps)].mean().item()


def twin_retrieval(heatmaps: Tensor, aug_heatmaps: Tensor, crops: CropFlip) -> float:
    """Share of images whose augmented view's fine heatmap is nearest, by cosine, to its own cropped original.

    Candidates are the cropped originals of 50 consecutive images, each by its own crop: 2 is chance.
    """
    twins = _unit(apply_crops(heatmaps[:, None], crops)[:, 0])
    found = []
    for originals, augmented in zip(twins.split(TWIN_BATCH), _unit(aug_heatmaps).split(TWIN_BATCH), strict=True):
        nearest = (augmented @ originals.T).argmax(1)
        alive = originals.any(1) & augmented.any(1)
        found.append(alive & (nearest == torch.arange(len(nearest), device=nearest.device)))
    return _percent(torch.cat(found))


def match_sharpness(heatmaps: Tensor, area: float) -> float:
    """The one power that, applied to all fine heatmaps, gives them the mean effective area `area` (percent).

    The area falls as the power rises. Where no power between 1/64 and 64 reaches the area, the nearer end is returned;
    NaN for a NaN area.
    """
    if math.isnan(area):
        return area

    def excess(log_power: float) -> float:
        return effective_area(sharpen(heatmaps, math.exp(log_power))) - area

    lowest, highest = POWERS
    if excess(math.log(lowest)) <= 0:
        return lowest
    if excess(math.log(highest)) >= 0:
        return highest
    return math.exp(brentq(excess, math.log(lowest), math.log(highest), xtol=1e-8))


def sharpen(heatmaps: Tensor, power: float) -> Tensor:
    """Heatmaps [N, H, W] divided by their maximum, so that no power overflows or underflows as a whole, and raised."""
    peaks = heatmaps.amax((1, 2), keepdim=True)
    return torch.where(peaks > 0, heatmaps / peaks, heatmaps) ** power


def _live(heatmaps: Tensor) -> Tensor:
    return heatmaps.flatten(1).any(1)


def _unit(heatmaps: Tensor) -> Tensor:
    return normalize(heatmaps.double().flatten(1), dim=1)


def _percent(hits: Tensor) -> float:
    return 100 * hits.double().mean().item()
