"""What mere post-processing of the baseline's heatmaps scores, once they are as sharp as a method's.

All the baseline's fine heatmaps, or what is made in their place, are raised to the one power that gives them the mean
effective area of the method's heatmaps. What a method gains over these controls is not sharpness.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cgc_kernels.metrics import average_views, blur, effective_area, likeness, matching_power, sharpen, upsample

from . import measuring, metrics
from .explained import Explained
from .measuring import Places

BATCH = 10  # images whose fine heatmaps are made at once, which a CPU's caches hold
AREA_IMAGES = 1024  # areas are compared of at most so many heatmaps
AREA_SIDE = 64  # and of at most so many of their rows and columns
BLURS = (0.5, 0.7, 1.0)  # sigmas in cells of the coarse heatmaps; of each measure the best is reported

# Some images -> fine heatmaps of the originals, and as many more of the same power by name; None where there are none.
Maker = Callable[[Explained], dict[str, Tensor] | None]


class Control(NamedTuple):
    """Post-processing of the baseline.

    Attributes:
        title: in tables.
        makers: of its heatmaps, of which the best counts in each measure.
        measures: what it is a control of.
    """

    title: str
    makers: tuple[Maker, ...]
    measures: tuple[str, ...]


def _as_they_are(part: Explained) -> dict[str, Tensor]:
    return _fine(part, maps="heatmaps", aug_maps="aug_heatmaps", runner_up="runner_up_heatmaps")


def _blurred(sigma: float) -> Maker:
    def make(part: Explained) -> dict[str, Tensor]:
        names = ("heatmaps", "aug_heatmaps")
        return _as_they_are(part._replace(**{name: blur(getattr(part, name), sigma) for name in names}))

    return make


def _channel_norm(part: Explained) -> dict[str, Tensor]:
    return _fine(part, maps="norms")


def _centred(part: Explained) -> dict[str, Tensor]:
    return _fine(part, maps="centred_heatmaps")


def _mean_of_views(part: Explained) -> dict[str, Tensor] | None:
    if not part.more_views:
        return None
    views = [(part.aug_heatmaps, part.crop_flip), *part.more_views]
    return {"maps": average_views(part.heatmaps, views, part.image_size)}


def _fine(part: Explained, **names: str) -> dict[str, Tensor]:
    return {own: upsample(getattr(part, name), part.image_size) for own, name in names.items()}


CONTENT, PEAK = ("content_heatmap", "content_mask"), ("pointing_game", "peak_in_mask")  # a power moves no peak
CONTROLS = {
    "sharpness_matched": Control("as sharp", (_as_they_are,), (*CONTENT, "consistency", "likeness")),
    "blurred": Control(
        "blurred and as sharp", tuple(_blurred(sigma) for sigma in BLURS), (*CONTENT, *PEAK, "consistency")
    ),
    "channel_norm": Control("channel norm, as sharp", (_channel_norm,), (*CONTENT, *PEAK)),
    "centred": Control("mean of all classes taken out, as sharp", (_centred,), (*CONTENT, *PEAK)),
    "five_views": Control("mean over five views, as sharp", (_mean_of_views,), (*CONTENT, *PEAK)),
}


def of_baseline(baseline: Explained, method: Explained) -> dict[str, float]:
    """Every control at the mean effective area of the method's heatmaps, in percent; keys: CONTROL_MEASURE."""
    thin = _thinned(method, _as_they_are)
    area = math.nan if thin is None else effective_area(thin).nanmean().item()
    if area != area:
        return {}
    makers = {(name, number): make for name, own in CONTROLS.items() for number, make in enumerate(own.makers)}
    powers = {key: _power(_thinned(baseline, make), area) for key, make in makers.items()}
    rows = {key: [] for key, power in powers.items() if power == power}
    for part in baseline.batches(BATCH):
        where = measuring.places_of(part)
        for key in rows:
            rows[key].append(_measures(part, makers[key](part), powers[key], where))
    found = {}
    for (name, _), own in rows.items():
        summary = measuring.summarise({column: torch.cat([row[column] for row in own]) for column in own[0]})
        for measure in CONTROLS[name].measures:
            if measure in summary:
                key = f"{name}_{measure}"
                found[key] = max(summary[measure], found.get(key, 0.0))
    return found


def _thinned(explained: Explained, make: Maker) -> Tensor | None:
    """Fine heatmaps so made of readable images, as few and as coarse as it takes; None where there are none."""
    readable = (~explained.corrupt).nonzero()[:, 0]
    chosen = explained.select(readable[:: len(readable) // AREA_IMAGES + 1])
    made = [make(part) for part in chosen.batches(BATCH)]
    if not made or made[0] is None:
        return None
    step = -(-explained.image_size // AREA_SIDE)
    return torch.cat([own["maps"][:, step // 2 :: step, step // 2 :: step] for own in made])


def _power(maps: Tensor | None, area: float) -> float:
    return math.nan if maps is None else matching_power(maps, area)


def _measures(part: Explained, made: dict[str, Tensor], power: float, where: Places) -> dict[str, Tensor]:
    made = {name: sharpen(maps, power) for name, maps in made.items()}
    values = {"label": part.labels, "corrupt": part.corrupt, **measuring.on_objects(made["maps"], where)}
    if "aug_maps" in made:
        values["consistency"] = metrics.consistencies(made["maps"], made["aug_maps"], part.crop_flip)
        values["likeness"] = likeness(made["maps"], made["runner_up"])
    return values
