"""What is measured of a network on a split."""

import math
from typing import NamedTuple

import torch
from driver.metrics import consistencies, label_ranks
from torch import Tensor

from cgc_kernels import CropFlip, metrics

from . import sizes
from .maps import explained, of_class
from .networks import Head
from .views import Views

TEMPERATURES = (3.0, 4.0, 5.0, math.inf)  # of the explained log-probability, see explained()
BLURS = (0.5, 0.7, 1.0)  # cells of the coarse map, of which the best for each measure is the control


class Seen(NamedTuple):
    """What a network makes of a split: logits [N, K], maps of original and crop [N, K, H, W], channel norms [N, H, W].

    Where there is no crop, its maps are the original's.
    """

    logits: Tensor
    maps: Tensor
    crop_maps: Tensor
    norms: Tensor


@torch.no_grad()
def look(net: Head, split: Views) -> Seen:
    """The network's view of all images of a split."""
    parts = []
    for frozen in split.frozen.split(sizes.BATCH):
        logits, maps, features = net(frozen[:, 0])
        crop_maps = net(frozen[:, 1])[1] if frozen.shape[1] > 1 else maps
        parts.append((logits, maps, crop_maps, metrics.channel_norm(features)))
    return Seen(*map(torch.cat, zip(*parts, strict=True)))


def percent(values: Tensor) -> float:
    """Mean over those that are known."""
    return 100 * values.double().nanmean().item()


def placed(fine: Tensor, split: Views) -> dict[str, float]:
    """How fine heatmaps lie: CH by box and by mask, effective area, pointing game, peak on the object."""
    boxes = split.boxes * (sizes.FINE / sizes.SIZE)
    near = metrics.box_masks(boxes, sizes.FINE, tolerance=metrics.POINTING_TOLERANCE * sizes.FINE)
    return {
        "box": percent(metrics.content_heatmap(fine, metrics.box_masks(boxes, sizes.FINE))),
        "mask": percent(metrics.content_heatmap(fine, split.masks)),
        "area": percent(metrics.effective_area(fine)),
        "pointing": percent(metrics.pointing_game(fine, near)),
        "peak": percent(metrics.pointing_game(fine, split.masks)),
    }


def follows(own: Tensor, twin: Tensor, crops: CropFlip) -> float:
    """Consistency: cosine of a crop's heatmap and the original's seen through that crop."""
    parts = zip(own.split(sizes.BATCH), twin.split(sizes.BATCH), crops.rows().split(sizes.BATCH), strict=True)
    fine = [
        (metrics.upsample(a, sizes.SIZE), metrics.upsample(b, sizes.SIZE), CropFlip.from_rows(rows))
        for a, b, rows in parts
    ]
    return percent(torch.cat([consistencies(*each) for each in fine]))


def likeness(maps: Tensor, labels: Tensor, second: Tensor) -> dict[str, float]:
    """Cosine of the label's fine heatmap and that of the best other class; how many of the latter are dead."""
    own, rival = (metrics.upsample(of_class(maps, classes), sizes.FINE) for classes in (labels, second))
    return {"likeness": percent(metrics.likeness(own, rival)), "second dead": 100 - percent(metrics.live(rival))}


def two_objects(seen: Seen, split: Views) -> dict[str, float]:
    """How often the heatmap of an object's class is denser on it than on the other object: the labelled, the other."""
    own, other = (
        metrics.upsample(of_class(seen.maps, classes), sizes.FINE) for classes in (split.labels, split.others)
    )
    return {
        "denser": percent(metrics.denser(own, split.masks, split.other_masks)),
        "denser other": percent(metrics.denser(other, split.other_masks, split.masks)),
    }


def at_area(heatmaps: Tensor, split: Views, area: float) -> dict[str, float]:
    """How coarse heatmaps lie once a power has given them a mean effective area, in percent."""
    fine = metrics.upsample(heatmaps, sizes.FINE)
    return placed(metrics.sharpen(fine, metrics.matching_power(fine, area / 100)), split)


def controls(baseline: Seen, split: Views, area: float) -> dict[str, float]:
    """The baseline without further training, at an area.

    Its heatmaps by a power, by a blur and a power, those with the mean of all classes' maps taken out by a power, and
    the norms of its channels by a power.
    """
    heatmaps = of_class(baseline.maps, split.labels)
    by_blur = [at_area(metrics.blur(heatmaps, sigma), split, area) for sigma in BLURS]
    centred = of_class(explained(baseline.maps, baseline.logits, math.inf), split.labels)
    found = {
        "power": at_area(heatmaps, split, area),
        "blur": {name: max(each[name] for each in by_blur) for name in by_blur[0]},
        "centred": at_area(centred, split, area),
        "norm": at_area(baseline.norms, split, area),
    }
    return {f"{name} {how}": each[name] for how, each in found.items() for name in ("box", "mask", "peak")}


def measured(seen: Seen, split: Views, baseline: Seen) -> dict[str, float]:
    """Everything of one network on one split."""
    labels = split.labels
    second = seen.logits.scatter(1, labels[:, None], -math.inf).argmax(1)
    own, twin = (of_class(maps, labels) for maps in (seen.maps, seen.crop_maps))
    row = placed(metrics.upsample(own, sizes.FINE), split) | likeness(seen.maps, labels, second)
    row["accuracy"] = percent(label_ranks(seen.logits, labels) == 0)
    row["consistency"] = follows(own, twin, CropFlip.from_rows(split.crops[:, 0]))
    row |= controls(baseline, split, row["area"])
    for temperature in TEMPERATURES:
        maps = explained(seen.maps, seen.logits, temperature)
        at = placed(metrics.upsample(of_class(maps, labels), sizes.FINE), split) | likeness(maps, labels, second)
        row |= {f"{name} T={temperature:g}": value for name, value in at.items()}
    return row
