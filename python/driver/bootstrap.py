"""How far a difference between two models would vary with the objects that the test images happen to show."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .explained import Explained

RESAMPLES = 2000
AT_ONCE = 1 << 22  # drawn groups held in memory


class Interval(NamedTuple):
    """A mean, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def accuracy_difference(pairs: Iterable[tuple[Explained, Explained]]) -> Interval | None:
    """Accuracy of the first less that of the second, in percent, on the images that both could read.

    pairs: two models' answers on the same images, a pair for every seed. None where there are not two objects.
    """
    gains, groups = [], []
    for own, other in pairs:
        readable = ~own.corrupt & ~other.corrupt
        hits = [(answers.ranks == 0)[readable].double() for answers in (own, other)]
        gains.append(100 * (hits[0] - hits[1]))
        groups.append(own.groups[readable])
    return paired(torch.cat(gains), torch.cat(groups)) if gains else None


def paired(differences: Tensor, groups: Tensor) -> Interval | None:
    """Mean of paired differences [N] of images, and its percentile interval over resamples of whole groups.

    groups: int64 [N]; images of one group, which show one object, are drawn together, those of all seeds as well.
    Seeded: the same every time. None where there are not two groups.
    """
    from scipy import stats  # here, since it takes a second that a single training need not wait

    numbers = np.unique(groups.numpy(), return_inverse=True)[1]
    sums, counts = np.bincount(numbers, differences.double().numpy()), np.bincount(numbers)
    if len(sums) < 2:
        return None
    result = stats.bootstrap(
        (sums, counts),
        lambda drawn, sizes, axis: drawn.sum(axis) / sizes.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, AT_ONCE // len(sums)),
        method="percentile",
        random_state=np.random.default_rng(0),
    )
    return Interval(float(sums.sum() / counts.sum()), *map(float, result.confidence_interval))
