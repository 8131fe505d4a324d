"""What is measured of heatmaps, each with its definition; one number an image, NaN where there is none.

Heatmaps come in two resolutions: coarse [N, H, W] as Grad-CAM makes them, fine [N, S, S] resized bilinearly to the
view the model saw. A heatmap that is zero everywhere, or not finite, is dead: it is counted, and left out of all
measures but twin retrieval, where it fails. Boxes are float [T, 4], (left, top, right, bottom) in pixels of the view,
right and bottom excluded, those of image 0 first; ``counts`` [N] says how many each image has. An image without a box
has NaN in what needs one.

Sharper heatmaps score better in some measures and worse in others without looking anywhere else, so those measures have
a control: the same number for the baseline's heatmaps after :func:`match_sharpness`.
"""

import math

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from cgc_kernels import CropFlip

POINTING_TOLERANCE = 15 / 224  # of the side of the view: 15 px at 224, 4.3 px at 64
TWIN_BATCH = 50
POWERS = (2.0**-6, 2.0**6)
NEVER = torch.iinfo(torch.int64).max  # the rank of a label that no number of guesses would find


def fine(heatmaps: Tensor, size: int) -> Tensor:
    """Coarse [N, H, W] -> fine [N, size, size], bilinear, align_corners=False."""
    return interpolate(heatmaps[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]


def live(heatmaps: Tensor) -> Tensor:
    """Which heatmaps [N, H, W] are finite, and not zero everywhere: bool [N]."""
    maps = heatmaps.flatten(1)
    return maps.isfinite().all(1) & maps.any(1)


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the label: int64 [N]. 0 is a correct prediction, below 5 is correct in the top 5.

    Of equal logits the class with the lower index comes first, as for argmax; where one is not finite, nothing is
    predicted: the rank is :data:`NEVER`. logits [N, K], labels [N].
    """
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    ranks = ((logits > own) | ((logits == own) & earlier)).sum(1)
    return torch.where(logits.isfinite().all(1), ranks, NEVER)


def box_masks(boxes: Tensor, counts: Tensor, size: int, tolerance: float = 0.0) -> Tensor:
    """Union of each image's boxes: bool [N, size, size], true where a pixel is at most ``tolerance`` from a box.

    A pixel belongs to a box if its centre does; a box too thin to hold a centre has the one pixel in its middle. The
    distance is Euclidean, between pixels.
    """
    owner = torch.repeat_interleave(torch.arange(len(counts), device=boxes.device), counts)
    across, down = (_distances(boxes[:, side], boxes[:, side + 2], size) for side in (0, 1))
    inside = down[:, :, None] ** 2 + across[:, None, :] ** 2 <= tolerance**2
    masks = torch.zeros(len(counts), size, size, dtype=torch.int32, device=boxes.device)
    return masks.index_add_(0, owner, inside.int()) > 0


def content_shares(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Content Heatmap (Pillai et al., 2022): share of each fine heatmap's mass inside the mask, float64 [N] in 0..1.

    Of a flat heatmap it is the mask's share of the view. Unlike the released code a dead heatmap has no score, and a
    box that begins at 0 is a box like any other.
    """
    masses = heatmaps.double()
    shares = (masses * masks).sum((1, 2)) / masses.sum((1, 2))
    return torch.where(masks.flatten(1).any(1), shares, math.nan)


def effective_areas(heatmaps: Tensor) -> Tensor:
    """exp(entropy) of each fine heatmap taken as a distribution, as a share of the view: float64 [N] in 0..1.

    1 for a constant heatmap; k of n pixels alight, all equally, give k / n.
    """
    masses = heatmaps.double().flatten(1)
    masses = masses / masses.sum(1, keepdim=True)
    return (-torch.xlogy(masses, masses).sum(1)).exp() / masses.shape[1]


def pointing_hits(heatmaps: Tensor, near: Tensor) -> Tensor:
    """Whether each fine heatmap's maximum lies on ``near``: float64 [N], 0 or 1, or the share of tied maxima that do.

    Pointing game (Zhang et al., 2018): ``near`` is :func:`box_masks` with a tolerance of 15 px at 224.
    """
    peaks = heatmaps == heatmaps.amax((1, 2), keepdim=True)
    hits = (peaks & near).sum((1, 2)) / peaks.sum((1, 2)).double()
    return torch.where(live(heatmaps) & near.flatten(1).any(1), hits, math.nan)


def mean_of_classes(values: Tensor, labels: Tensor) -> float:
    """Mean over the classes of each class's mean; NaN values are left out, and classes that have nothing else."""
    known = ~values.isnan()
    means = [values[known & (labels == label)].mean() for label in labels[known].unique()]
    return torch.stack(means).mean().item() if means else math.nan


def consistencies(heatmaps: Tensor, aug_heatmaps: Tensor, crops: CropFlip) -> Tensor:
    """Cosine between the augmented view's fine heatmap and the original's fine heatmap, cropped alike: float64 [N].

    NaN where either is dead, or where the crop holds none of the original's mass.
    """
    twins = crops.apply(heatmaps[:, None])[:, 0]
    cosines = (_unit(twins) * _unit(aug_heatmaps)).sum(1)
    return torch.where(live(twins) & live(aug_heatmaps), cosines, math.nan)


def twins_found(heatmaps: Tensor, aug_heatmaps: Tensor, crops: CropFlip) -> Tensor:
    """Whether an augmented view's fine heatmap is nearest, by cosine, to its own cropped original: bool [N].

    Candidates are the cropped originals of 50 consecutive images, each by its own crop: 2 % is chance.
    """
    twins = _unit(crops.apply(heatmaps[:, None])[:, 0])
    found = []
    for originals, augmented in zip(twins.split(TWIN_BATCH), _unit(aug_heatmaps).split(TWIN_BATCH), strict=True):
        nearest = (augmented @ originals.T).argmax(1)
        alive = originals.any(1) & augmented.any(1)
        found.append(alive & (nearest == torch.arange(len(nearest), device=nearest.device)))
    return torch.cat(found)


def match_sharpness(heatmaps: Tensor, area: float) -> float:
    """The one power that, applied to all fine heatmaps, gives them the mean effective area ``area``, in 0..1.

    The area falls as the power rises. Where no power between 1/64 and 64 reaches the area, the nearer end is returned;
    NaN for a NaN area, and where all heatmaps are dead.
    """
    heatmaps = heatmaps[live(heatmaps)]
    if math.isnan(area) or not len(heatmaps):
        return math.nan

    def excess(log_power: float) -> float:
        return effective_areas(sharpen(heatmaps, math.exp(log_power))).mean().item() - area

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


def _distances(start: Tensor, stop: Tensor, size: int) -> Tensor:
    """Pixels between every pixel and the box's pixels along one axis, 0 inside: float64 [T, size]."""
    start, stop = start.double(), stop.double()
    first, last = (start - 0.5).ceil(), (stop - 0.5).ceil() - 1
    middle = ((start + stop) / 2).floor().clamp(0, size - 1)
    thin = last < first
    first, last = torch.where(thin, middle, first), torch.where(thin, middle, last)
    pixel = torch.arange(size, device=start.device)
    return torch.maximum(first[:, None] - pixel, pixel - last[:, None]).clamp(min=0)


def _unit(heatmaps: Tensor) -> Tensor:
    """Heatmaps [N, H, W] as unit vectors [N, H * W], dead ones as zeros."""
    return normalize(torch.where(live(heatmaps)[:, None, None], heatmaps, 0).double().flatten(1), dim=1)
