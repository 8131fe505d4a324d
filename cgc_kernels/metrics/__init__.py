"""Measures of heatmaps for an evaluation of your own, and the controls that say what of them mere sharpness gives.

Heatmaps are [N, H, W], float32 or float64, non-negative; masks are bool [N, H, W]. A map is measured at the size of the
view, so Grad-CAM's coarse ones go through :func:`upsample` first. Measures are [N], float64 (float32 on devices without
it), NaN where there is nothing to measure: a heatmap that is dead (see :func:`live`), an empty mask. Take the mean over
images with ``nanmean`` and count the dead beside it.

A sharper heatmap scores better in some measures and worse in others without looking anywhere else. So compare at equal
:func:`effective_area`: the other model's heatmaps after ``sharpen(maps, matching_power(maps, area))``, with and without
:func:`blur` before, their :func:`channel_norm` and their mean over views (:func:`average_views`) treated alike.

Every function raises TypeError or ValueError naming the argument, what it must be and what it is.
"""

from .inputs import live
from .maps import average_views, channel_norm, upsample
from .places import POINTING_TOLERANCE, box_masks, content_heatmap, denser, likeness, pointing_game
from .sharpness import blur, effective_area, matching_power, sharpen

__all__ = [
    "POINTING_TOLERANCE",
    "average_views",
    "blur",
    "box_masks",
    "channel_norm",
    "content_heatmap",
    "denser",
    "effective_area",
    "likeness",
    "live",
    "matching_power",
    "pointing_game",
    "sharpen",
    "upsample",
]
