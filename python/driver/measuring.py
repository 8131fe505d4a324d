"""Every measure of the images of a split, and their means; NaN where there is nothing to measure."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cgc_kernels import CropFlip
from cgc_kernels.metrics import (
    POINTING_TOLERANCE,
    box_masks,
    content_heatmap,
    denser,
    effective_area,
    likeness,
    live,
    pointing_game,
    upsample,
)

from . import faithfulness, metrics
from .explained import Explained, unpacked

MEANS = (
    *("content_heatmap", "flat_content_heatmap", "content_mask", "flat_content_mask", "peak_in_mask"),
    *("effective_area", "consistency", "likeness", "denser", "denser_other", "insertion", "deletion"),
)


class Places(NamedTuple):
    """Where the objects of N images are, bool [N, S, S] each.

    Attributes:
        box: in the labelled object's boxes.
        near: near enough to them for the pointing game.
        mask: on the labelled object; nowhere true where that is not known, None if it is of no image.
        other: on the other object, likewise.
    """

    box: Tensor
    near: Tensor
    mask: Tensor | None
    other: Tensor | None


def places(boxes: Tensor, counts: Tensor, size: int, mask: Tensor | None, other: Tensor | None = None) -> Places:
    """From boxes [T, 4] in views of ``size`` pixels, of which each image has so many, and masks bool [N, S, S]."""
    near = box_masks(boxes, size, counts=counts, tolerance=POINTING_TOLERANCE * size)
    return Places(box_masks(boxes, size, counts=counts), near, mask, other)


def places_of(explained: Explained) -> Places:
    """Where the objects are."""
    size = explained.image_size
    masks = [unpacked(bits, size) for bits in (explained.masks, explained.distractor_masks)]
    return places(explained.boxes, explained.box_counts, size, *masks)


def of_maps(maps: Tensor, aug_maps: Tensor, where: Places, crops: CropFlip) -> dict[str, Tensor]:
    """What fine heatmaps [N, S, S] say alone, and beside those of the augmented views."""
    return on_objects(maps, where) | {
        "dead": ~live(maps),
        "flat_content_heatmap": _share(where.box),
        **({} if where.mask is None else {"flat_content_mask": _share(where.mask)}),
        "effective_area": effective_area(maps),
        "consistency": metrics.consistencies(maps, aug_maps, crops),
    }


def on_objects(maps: Tensor, where: Places) -> dict[str, Tensor]:
    """Where the heat of fine heatmaps [N, S, S] is."""
    values = {"content_heatmap": content_heatmap(maps, where.box), "pointing": pointing_game(maps, where.near)}
    if where.mask is None:
        return values
    on_mask = {"content_mask": content_heatmap(maps, where.mask), "peak_in_mask": pointing_game(maps, where.mask)}
    return values | on_mask


def measures(explained: Explained) -> dict[str, Tensor]:
    """Every measure of every image [N].

    Keys: label, corrupt, correct, top5, twin, likeness, denser and denser_other where there are masks, insertion,
    deletion, and those of :func:`of_maps`.
    """
    rows = [_measures(part) for part in explained.batches()]
    values = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    values |= {"label": explained.labels, "corrupt": explained.corrupt}
    values |= {"correct": explained.ranks == 0, "top5": explained.ranks < 5}
    for name in ("insertion", "deletion"):
        scores = getattr(explained, name)
        values[name] = torch.full((len(explained.labels),), torch.nan, dtype=torch.float64)
        values[name][: len(scores)] = faithfulness.area_under(scores)
        values[name][values["dead"]] = torch.nan
    return values


def summarise(values: dict[str, Tensor]) -> dict[str, float]:
    """Means in percent of what is measured of each image; what nothing is known of is left out.

    The pointing game is the mean of the classes' means; corrupt images count nowhere but as corrupt_images, a number.
    """
    readable = {name: value[~values["corrupt"]] for name, value in values.items()}
    if not len(readable["label"]):
        return {"corrupt_images": float(values["corrupt"].sum())}
    names = {"accuracy": "correct", "top5": "top5", "dead_heatmaps": "dead", "twin_retrieval": "twin"}
    summary = {name: _percent(readable[own]) for name, own in names.items() if own in readable}
    if "pointing" in readable:
        summary["pointing_game"] = 100 * metrics.mean_of_classes(readable["pointing"], readable["label"])
    summary |= {name: 100 * readable[name].nanmean().item() for name in MEANS if name in readable}
    summary = {name: value for name, value in summary.items() if value == value}
    return summary | {"corrupt_images": float(values["corrupt"].sum())}


def per_class(values: dict[str, Tensor], classes: Sequence[str]) -> list[dict]:
    """The summary of every class that has a readable image, in the order of the classes, with its name and number."""
    rows = []
    for number in values["label"][~values["corrupt"]].unique().tolist():
        own = {name: value[values["label"] == number] for name, value in values.items()}
        summary = summarise(own)
        rows.append({"class": classes[number], "images": int((~own["corrupt"]).sum()), **summary})
    return rows


def _measures(part: Explained) -> dict[str, Tensor]:
    """What the heatmaps of some images say."""
    names = ("heatmaps", "aug_heatmaps", "runner_up_heatmaps", "distractor_heatmaps")
    maps, aug_maps, runner_up, other = (upsample(getattr(part, name), part.image_size) for name in names)
    where = places_of(part)
    values = of_maps(maps, aug_maps, where, part.crop_flip)
    values |= {"twin": metrics.twins_found(maps, aug_maps, part.crop_flip), "likeness": likeness(maps, runner_up)}
    if where.mask is not None and where.other is not None:
        values["denser"] = denser(maps, where.mask, where.other)
        values["denser_other"] = denser(other, where.other, where.mask)
    return values


def _share(masks: Tensor) -> Tensor:
    """Of the view, float64 [N]; NaN for an empty mask."""
    shares = masks.flatten(1).double().mean(1)
    return torch.where(shares > 0, shares, torch.nan)


def _percent(hits: Tensor) -> float:
    return 100 * hits.double().mean().item()
