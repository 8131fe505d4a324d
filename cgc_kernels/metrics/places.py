"""Where the heat is: inside a mask or not, here or there, as in another heatmap or not."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..tensors import described, is_dense
from ..transforms.checks import height_width
from .inputs import check, live, where_known, wide

POINTING_TOLERANCE = 15 / 224  # of the side of the view, as is usual: 15 px at 224


def content_heatmap(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Content Heatmap, CH (Pillai et al., CVPR 2022): the share of each heatmap's sum that lies inside the mask, [N].

    By box with :func:`box_masks`, which is the paper's; by mask with the object's own. In 0..1; of a flat heatmap it is
    the mask's share of the view. Unlike the released code a dead heatmap has no score, and a box that begins at 0 is a
    box like any other.

    Example::

        >>> masks = box_masks(torch.tensor([[0.0, 0.0, 4.0, 2.0]]), 8)
        >>> content_heatmap(torch.ones(1, 8, 8), masks).item()
        0.125
    """
    check(heatmaps, masks=masks)
    shares = _inside(heatmaps, masks) / heatmaps.sum((1, 2), dtype=wide(heatmaps))
    return where_known(live(heatmaps) & _any(masks), shares)


def pointing_game(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Whether each heatmap's maximum lies inside the mask: [N], 0 or 1, or the share of tied maxima that do.

    The pointing game (Zhang et al., IJCV 2018) is its mean over the images of a class, then over the classes, with the
    masks ``box_masks(boxes, size, tolerance=POINTING_TOLERANCE * size)``. With the object's own mask it is the stricter
    *peak in mask*.

    Example::

        >>> heatmaps = torch.zeros(1, 8, 8)
        >>> heatmaps[0, 1, 5] = 1.0
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 2.0]])
        >>> [pointing_game(heatmaps, box_masks(box, 8, tolerance=pixels)).item() for pixels in (0, 2)]
        [0.0, 1.0]
    """
    check(heatmaps, masks=masks)
    peaks = heatmaps == heatmaps.amax((1, 2), keepdim=True)
    hits = (peaks & masks).sum((1, 2)) / peaks.sum((1, 2)).to(wide(heatmaps))
    return where_known(live(heatmaps) & _any(masks), hits)


def denser(heatmaps: Tensor, masks: Tensor, other_masks: Tensor) -> Tensor:
    """Of two objects in an image, whether the heatmap's mean is larger on the first: [N], 1 or 0, 1/2 where equal.

    For the heatmap of the first object's class, a test that it tells the two apart.

    Example::

        >>> left = box_masks(torch.tensor([[0.0, 0.0, 4.0, 8.0]]), 8)
        >>> denser(left.float(), left, ~left).item()
        1.0
    """
    check(heatmaps, masks=masks, other_masks=other_masks)
    means = [_inside(heatmaps, own) / own.sum((1, 2)) for own in (masks, other_masks)]
    larger = (1 + torch.sign(means[0] - means[1])) / 2
    return where_known(live(heatmaps) & _any(masks) & _any(other_masks), larger)


def likeness(heatmaps: Tensor, others: Tensor) -> Tensor:
    """Cosine of two heatmaps of one image, of two views brought together or of two classes: [N] in 0..1.

    Example::

        >>> likeness(torch.ones(1, 8, 8), 3 * torch.ones(1, 8, 8)).item()
        1.0
    """
    check(heatmaps)
    checks.heatmaps(others, "others")
    checks.same_kind("others", others, "heatmaps", heatmaps)
    units = [F.normalize(maps.flatten(1).to(wide(maps)), dim=1, eps=0) for maps in (heatmaps, others)]
    return where_known(live(heatmaps) & live(others), (units[0] * units[1]).sum(1).clamp(max=1))


def box_masks(
    boxes: Tensor, image_size: int | tuple[int, int], *, counts: Tensor | None = None, tolerance: float = 0.0
) -> Tensor:
    """The pixels of each image's boxes: bool [N, S_h, S_w], true where a pixel is at most ``tolerance`` from a box.

    A pixel belongs to a box if its centre does; a box too thin to hold a centre has the one pixel in its middle. The
    distance is Euclidean, between pixels.

    Args:
        boxes: [T, 4] of all images, those of image 0 first: (left, top, right, bottom) in pixels of the view, right and
            bottom excluded.
        image_size: S or (S_h, S_w).
        counts: int64 [N], how many boxes each image has, T in all; None: one each. An image without a box has an empty
            mask.
        tolerance: in pixels, >= 0.

    Example::

        >>> box_masks(torch.tensor([[0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 2.0, 2.0]]), 8).sum((1, 2)).tolist()
        [8, 1]
    """
    _check_boxes(boxes)
    checks.scalar("tolerance", tolerance, inclusive=True)
    counts = boxes.new_ones(len(boxes), dtype=torch.int64) if counts is None else _checked_counts(counts)
    owner = torch.repeat_interleave(torch.arange(len(counts), device=boxes.device), counts)
    if len(owner) != len(boxes):
        raise ValueError(f"counts must add up to the number of boxes, {len(boxes)}, got {len(owner)}")
    height, width = height_width(image_size)
    across, down = (_distances(boxes[:, side], boxes[:, side + 2], (width, height)[side]) for side in (0, 1))
    inside = down[:, :, None] ** 2 + across[:, None, :] ** 2 <= tolerance**2
    masks = torch.zeros(len(counts), height, width, dtype=torch.int32, device=boxes.device)
    return masks.index_add_(0, owner, inside.int()) > 0


def _check_boxes(boxes: Tensor) -> None:
    if not is_dense(boxes) or boxes.dtype == torch.bool or boxes.dim() != 2 or boxes.shape[1] != 4:
        raise TypeError(f"boxes must be a tensor [T, 4] of numbers, got {described(boxes)}")
    right = boxes.isfinite().all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1)
    if not right.all():
        first = int(right.int().argmin())
        raise ValueError(f"boxes must be finite, left <= right, top <= bottom, got {boxes[first].tolist()} at {first}")


def _checked_counts(counts: Tensor) -> Tensor:
    if not is_dense(counts) or counts.dtype != torch.int64 or counts.dim() != 1:
        raise TypeError(f"counts must be a tensor [N] of int64, got {described(counts)}")
    if (counts < 0).any():
        raise ValueError(f"counts must be at least 0, got {int(counts.min())}")
    return counts


def _any(masks: Tensor) -> Tensor:
    return masks.flatten(1).any(1)


def _inside(heatmaps: Tensor, masks: Tensor) -> Tensor:
    return torch.where(masks, heatmaps, 0).sum((1, 2), dtype=wide(heatmaps))


def _distances(start: Tensor, stop: Tensor, size: int) -> Tensor:
    """Pixels between every pixel and the box's pixels along one axis, 0 inside: [T, size]."""
    start, stop = start.to(wide(start)), stop.to(wide(stop))
    first, last = (start - 0.5).ceil(), (stop - 0.5).ceil() - 1
    middle = ((start + stop) / 2).floor().clamp(0, size - 1)
    thin = last < first
    first, last = torch.where(thin, middle, first), torch.where(thin, middle, last)
    pixel = torch.arange(size, device=start.device)
    return torch.maximum(first[:, None] - pixel, pixel - last[:, None]).clamp(min=0)
