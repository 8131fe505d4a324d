"""The augmentation that makes a second view and says how."""

import math
import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..options import widest_dtype
from ..tensors import described, is_dense
from .checks import check_view, height_width
from .crop_flip import CropFlip
from .cropping import crop_image, crop_tensor


class RandomCropFlip:
    """Makes the second view of CGC: a random crop of a view, resized back to its size, flipped or not, and its record.

    Args:
        size: S or (height, width) of the view; the view must have exactly this size, because its heatmap is resampled
            at S x S and the crop is recorded in those pixels.
        scale: range of the crop's area as a share of the view's, 0 < low <= high <= 1; drawn uniformly.
        ratio: range of the crop's width / height, 0 < low <= high; drawn log-uniformly. As in torchvision's
            RandomResizedCrop, after ten draws that do not fit the largest centred crop within ``ratio`` is taken.
        p: probability of the horizontal flip, in [0, 1].

    Calling it with a view, a PIL image or a tensor [C, H, W] (floating point or uint8), returns ``(aug, crop)``:
    ``aug`` of the view's type, dtype and shape, a tv_tensor included, ``crop`` a :class:`CropFlip` of 0-d tensors
    (int64, bool, on the CPU). A batch [B, C, H, W] gets a crop for each of its views, drawn and taken on its own
    device without waiting for it; ``crop`` holds [B] tensors there.
    The only source of randomness is torch's global generator, for a batch that of its device, so that the seeds of
    DataLoader workers rule it.
    Raises ValueError for parameters out of range or a view of another size, TypeError for anything not a view.

    Example::

        >>> make_view = RandomCropFlip(224)
        >>> aug, crop = make_view(torch.rand(3, 224, 224))
        >>> aug.shape
        torch.Size([3, 224, 224])
    """

    tries = 10  # boxes drawn for a crop, of which the first that fits is taken

    def __init__(
        self,
        size: int | Sequence[int],
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        p: float = 0.5,
    ):
        self.size = height_width(size, "size")
        _check_range("scale", scale, 1)
        _check_range("ratio", ratio, sys.float_info.max)
        if not _is_number(p):
            raise TypeError(f"p must be a number in [0, 1], got {described(p)}")
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], got {p}")
        self.scale, self.ratio, self.p = tuple(scale), tuple(ratio), p

    def __call__(self, view: Any) -> tuple[Any, CropFlip]:
        check_view(view, self.size)
        if isinstance(view, Tensor) and view.ndim == 4:
            crop = self._draw(view.shape[:1], view.device)
            return crop.apply(view), crop
        crop = self._draw((), torch.device("cpu"))
        return (crop_tensor if isinstance(view, Tensor) else crop_image)(view, crop), crop

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, scale={self.scale}, ratio={self.ratio}, p={self.p})"

    def from_uniform(
        self,
        area: Tensor,
        ratio: Tensor,
        down: Tensor,
        across: Tensor,
        flip: Tensor,
        size: tuple[Tensor, Tensor] | None = None,
    ) -> CropFlip:
        """The crops that numbers uniform in [0, 1) stand for, whoever drew them: the rule by which a call draws.

        ``area``, ``ratio``: floating point [..., T], of T boxes a sample; a call draws ``tries`` of them. ``down``,
        ``across``: [...], the place in the room that is left. ``flip``: [...], flipped where below ``p``. ``size``:
        (height, width), int64 [...] each, where views have sizes of their own. All on one device, which is not waited
        for. Returns fields [...]. Raises TypeError or ValueError for numbers of another dtype or shape.

        Example::

            >>> area, ratio = torch.rand(2, 5, RandomCropFlip.tries).unbind()
            >>> RandomCropFlip(224).from_uniform(area, ratio, *torch.rand(3, 5)).check(224)
        """
        _check_numbers(area=area, ratio=ratio, down=down, across=across, flip=flip)
        # Filled on the device: a number would be copied from the host.
        size = size or tuple(torch.full_like(down, side, dtype=torch.int64) for side in self.size)
        height, width = (side[..., None] for side in size)
        areas = _between(area, *self.scale) * (height * width)
        ratios = _between(ratio, *map(math.log, self.ratio)).exp()
        heights, widths = (areas / ratios).sqrt().round().long(), (areas * ratios).sqrt().round().long()
        fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
        first, any_fits = fits.byte().argmax(-1, keepdim=True), fits.any(-1)
        sides, starts = [], []
        for drawn, largest, most, share in zip(
            (heights, widths), self._largest(*size, area.dtype), size, (down, across), strict=True
        ):
            side = torch.where(any_fits, drawn.gather(-1, first)[..., 0], largest)
            room = most - side
            sides.append(side)
            starts.append(torch.where(any_fits, (share * (room + 1)).long(), room // 2))
        return CropFlip(*starts, *sides, flip < self.p)

    def _draw(self, batch: Sequence[int], device: torch.device) -> CropFlip:
        numbers = {"dtype": widest_dtype(device), "device": device}
        area, ratio = (torch.rand(*batch, self.tries, **numbers) for _ in range(2))
        down, across = torch.rand(2, *batch, **numbers)
        return self.from_uniform(area, ratio, down, across, torch.rand(batch, device=device))

    def _largest(self, height: Tensor, width: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(height, width) of the largest crop within ``ratio``."""
        closest = (width.to(dtype) / height).clamp(*self.ratio)
        sides = (width / closest).round().long(), (height * closest).round().long()
        return sides[0].clamp(min=1).minimum(height), sides[1].clamp(min=1).minimum(width)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_range(name: str, given: Any, most: float) -> None:
    """(low, high) with 0 < low <= high <= most."""
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or not all(map(_is_number, given)):
        raise TypeError(f"{name} must be two numbers (low, high), got {given!r}")
    if len(given) != 2 or not 0 < given[0] <= given[1] <= most:
        bound = " <= 1" if most == 1 else ""
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high{bound}, got {given}")


def _check_numbers(**numbers: Tensor) -> None:
    for name, own in numbers.items():
        if not is_dense(own):
            raise TypeError(f"{name} must be a dense tensor, got {described(own)}")
    shape = numbers["down"].shape
    tries = numbers["area"].shape[-1:] or (RandomCropFlip.tries,)
    for name, own in numbers.items():
        wanted = (*shape, *tries) if name in ("area", "ratio") else shape
        if not own.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {own.dtype}")
        if own.shape != wanted:
            raise ValueError(f"{name} must have shape {list(wanted)}, got {list(own.shape)}")


def _between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Numbers of [0, 1) as numbers of [low, high)."""
    return low + (high - low) * numbers
