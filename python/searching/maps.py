"""Maps of classes: what is explained, of which class, and as a crop sees it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cgc_kernels import CropFlip

from . import sizes


def explained(maps: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Class maps [N, K, H, W] of T log softmax(logits / T), from those of the logits.

    At T = 1 the map of the log-probability, at infinity of the logit less the mean logit.
    """
    others = (logits.detach() / temperature).softmax(1)
    return maps - (others[:, :, None, None] * maps).sum(1, keepdim=True)


def of_class(maps: Tensor, classes: Tensor) -> Tensor:
    """The heatmaps [N, H, W] of one class an image."""
    return F.relu(maps[torch.arange(len(maps)), classes])


def seen_through(maps: Tensor, crops: CropFlip) -> Tensor:
    """Coarse maps [N, K, H, W] of whole views, signed, as the crops see them, on the same H x W grid."""
    grid = (torch.arange(maps.shape[-1]) + 0.5) / maps.shape[-1]
    across = torch.where(crops.flip[:, None], grid.flip(0), grid) * crops.width[:, None] + crops.left[:, None]
    down = grid * crops.height[:, None] + crops.top[:, None]
    places = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), -1) / sizes.SIZE * 2 - 1
    return F.grid_sample(maps, places, padding_mode="border", align_corners=False)


def unit(maps: Tensor) -> Tensor:
    """Maps [N, ...] as unit vectors; zero stays zero."""
    return F.normalize(maps.flatten(1), dim=1, eps=1e-6)


def cosine(maps: Tensor, others: Tensor) -> Tensor:
    """Of each map with its other, [N]."""
    return (unit(maps) * unit(others)).sum(1)


def to_unit_range(maps: Tensor) -> Tensor:
    """Non-negative maps [..., H, W] between 0 and 1, each by its own least and largest value."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-9)
