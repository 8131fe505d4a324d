"""Heatmaps made of others: at the size of the view, of no class, over several views."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..options import accumulation_dtype
from ..tensors import described, is_dense
from ..transforms import CropFlip
from ..transforms.checks import height_width
from .inputs import check


def upsample(heatmaps: Tensor, image_size: int | tuple[int, int]) -> Tensor:
    """Coarse heatmaps at the size of the view, S or (S_h, S_w): [N, S_h, S_w], bilinear, as the loss sees them.

    Example::

        >>> upsample(torch.rand(2, 7, 7), 224).shape
        torch.Size([2, 224, 224])
    """
    return F.interpolate(check(heatmaps)[:, None], height_width(image_size), mode="bilinear", align_corners=False)[:, 0]


def channel_norm(features: Tensor) -> Tensor:
    """The class-agnostic heatmap: the length of the feature vector of every cell, [N, C, H, W] to [N, H, W].

    It knows of no class, so what it scores is what features give away about where objects are.

    Example::

        >>> channel_norm(torch.ones(2, 16, 7, 7))[0, 0, 0].item()
        4.0
    """
    if not is_dense(features) or features.dim() != 4 or not features.is_floating_point():
        raise TypeError(f"features must be floating point [N, C, H, W], got {described(features)}")
    return torch.linalg.vector_norm(features, dim=1, dtype=accumulation_dtype(features))


def average_views(
    heatmaps: Tensor, views: Iterable[tuple[Tensor, CropFlip | Tensor]], image_size: int | tuple[int, int]
) -> Tensor:
    """The mean heatmap of several views of each image, in the frame of the original: [N, S_h, S_w].

    Every view's heatmap is moved back by the inverse of its transform; a pixel's mean is over the views that show it,
    the original always among them. Heatmaps are averaged as they are, so they must be of one scale, as those of one
    model are.

    Args:
        heatmaps: of the originals, [N, H, W].
        views: (heatmaps [N, H, W] of an augmented view, its transform as :func:`cgc_kernels.cgc_loss` takes it,
            CropFlip or matrices [N, 2, 3] or [N, 3, 3]) for every further view.
        image_size: S or (S_h, S_w), pixels of all views.

    Example::

        >>> views = [(torch.rand(2, 7, 7), CropFlip.identity(2, 224))]
        >>> average_views(torch.rand(2, 7, 7), views, 224).shape
        torch.Size([2, 224, 224])
    """
    total = upsample(heatmaps, image_size)
    if not isinstance(views, Iterable):
        raise TypeError(f"views must be pairs (heatmaps, transform), got {described(views)}")
    size, seen = tuple(total.shape[1:]), torch.ones_like(total)
    for number, view in enumerate(views):
        if not isinstance(view, Sequence) or len(view) != 2:
            raise TypeError(f"views[{number}] must be (heatmaps, transform), got {described(view)}")
        own, transform = view
        checks.heatmaps(own, f"views[{number}][0]")
        checks.same_kind(f"views[{number}][0]", own, "heatmaps", heatmaps)
        if isinstance(transform, CropFlip):
            checks.crop(transform, heatmaps, size)
            matrix = transform.matrix(size)
        else:
            matrix = checks.matrix(transform, heatmaps)
        moved, shown = _moved_back(own, matrix, size)
        total, seen = total + moved, seen + shown
    return total / seen


def _moved_back(heatmaps: Tensor, matrix: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Augmented views' heatmaps as the originals' pixels show them, and where they show them: [N, S_h, S_w] each.

    Zero outside. A coarse map is read where it lies, which is bilinear at every pixel of its view.
    """
    height, width = size
    rows, columns = (torch.arange(side, device=heatmaps.device, dtype=heatmaps.dtype) for side in size)
    across, down, shift = matrix.to(heatmaps.dtype)[..., None, None].unbind(2)
    x, y, scale = (across * columns + down * rows[:, None] + shift).unbind(1)
    # Centres at integers to -1 .. 1 between the view's borders.
    grid = torch.stack([(2 * x / scale + 1) / width - 1, (2 * y / scale + 1) / height - 1], -1)
    shown = (grid.abs() <= 1).all(-1) & (scale > 0)
    moved = F.grid_sample(heatmaps[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    return torch.where(shown, moved, 0), shown
