"""Measures of predictions, and of heatmaps beside their augmented twins; those of heatmaps alone are the library's.

A heatmap that is dead, zero everywhere or not finite, is counted, and left out of all measures but twin retrieval,
where it fails.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cgc_kernels import CropFlip
from cgc_kernels.metrics import likeness, live

TWIN_BATCH = 50
NEVER = torch.iinfo(torch.int64).max  # the rank of a label that no number of guesses would find


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the label: int64 [N]. 0 is a correct prediction, below 5 is correct in the top 5.

    Of equal logits the class with the lower index comes first, as for argmax; where one is not finite, nothing is
    predicted: the rank is :data:`NEVER`. logits [N, K], labels [N].
    """
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    ranks = ((logits > own) | ((logits == own) & earlier)).sum(1)
    return torch.where(logits.isfinite().all(1), ranks, NEVER)


def mean_of_classes(values: Tensor, labels: Tensor) -> float:
    """Mean over the classes of each class's mean; NaN values are left out, and classes that have nothing else."""
    known = ~values.isnan()
    means = [values[known & (labels == label)].mean() for label in labels[known].unique()]
    return torch.stack(means).mean().item() if means else math.nan


def consistencies(heatmaps: Tensor, aug_heatmaps: Tensor, crops: CropFlip) -> Tensor:
    """Cosine between the augmented view's fine heatmap and the original's fine heatmap, cropped alike: float64 [N].

    NaN where either is dead, or where the crop holds none of the original's mass.
    """
    return likeness(crops.apply(heatmaps[:, None])[:, 0], aug_heatmaps)


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


def _unit(heatmaps: Tensor) -> Tensor:
    """Heatmaps [N, H, W] as unit vectors [N, H * W], dead ones as zeros."""
    return normalize(torch.where(live(heatmaps)[:, None, None], heatmaps, 0).double().flatten(1), dim=1)
