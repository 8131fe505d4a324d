"""The augmentation between the two views of an image, and its record: :class:`CropFlip`, :class:`RandomCropFlip`.

CGC (Pillai et al., CVPR 2022) compares the heatmap of T(x) with T applied to the heatmap of x, so the T that made the
augmented view has to travel with it. Here T is crop, bilinear resize back to the size of the view, horizontal flip or
not. The flip is recorded exactly when it was made; the authors' released code also records one in half of the cases
where it made none, which mismatches a quarter of its positives.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from operator import add
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import widest_dtype
from .trees import from_iterables

__all__ = ["CropFlip", "RandomCropFlip"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_DTYPES = (_INTEGERS,) * 4 + ((torch.bool,),)  # of the fields of CropFlip
_BOX = ("top", "left", "height", "width")


@from_iterables
class CropFlip(NamedTuple):
    """Crop and flip of B samples, in pixels of the original view; fields in the order (i, j, h, w, flip).

    ``top``, ``left``, ``height``, ``width``: [B] integer tensors, ``flip``: [B] bool tensor, all on one device. The
    crop is rows ``top`` to ``top + height - 1`` and columns ``left`` to ``left + width - 1``, resized bilinearly to the
    size of the view (edges clamp at the crop's own border), then mirrored horizontally where ``flip``.
    A single sample holds 0-d tensors, so that the default ``collate_fn`` of a DataLoader stacks samples to [B].
    What walks trees of tensors, to pin, move or detach them, keeps the type; what does not becomes rows [B, 5] of
    integers, flip 0 or 1, in the order of the fields: the losses take those as well, see :meth:`from_rows`.

    Example::

        >>> crop = CropFlip.from_torchvision([(0, 8, 112, 96), (16, 16, 64, 64)], flip=[True, False])
        >>> crop.check(image_size=112)
        >>> crop.matrix(image_size=112).shape
        torch.Size([2, 3, 3])
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor

    @classmethod
    def identity(cls, batch: int, image_size: int | Sequence[int]) -> "CropFlip":
        """The transform of ``batch`` samples that changes nothing: the whole view (int or (height, width)), no flip."""
        height, width = _height_width(image_size)
        zeros = torch.zeros(batch, dtype=torch.int64)
        return cls(zeros, zeros.clone(), zeros + height, zeros + width, zeros.bool())

    @classmethod
    def from_rows(cls, rows: Tensor) -> "CropFlip":
        """From integers [..., 5], (top, left, height, width, flip) in a row, flip 0 or 1; the fields are views of it.

        Raises TypeError or ValueError for another dtype or shape.
        """
        if not isinstance(rows, Tensor) or rows.dtype not in _INTEGERS:
            got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"rows must be a tensor [B, 5] of integers, got {got}")
        if rows.ndim < 1 or rows.shape[-1] != 5:
            raise ValueError(f"rows must be [B, 5], (top, left, height, width, flip), got {list(rows.shape)}")
        *box, flip = rows.unbind(-1)
        return cls(*box, flip.bool())

    def rows(self) -> Tensor:
        """[..., 5] int64, as :meth:`from_rows` takes them."""
        return torch.stack([field.long() for field in self], -1)

    @classmethod
    def from_torchvision(cls, params: Any, flip: bool | Sequence[bool]) -> "CropFlip":
        """From what ``get_params`` or ``make_params`` of torchvision's RandomResizedCrop returned, v1 and v2.

        ``params``: one (i, j, h, w) or dict of top, left, height and width (gives 0-d fields), or a sequence of B of
        them ([B] fields). ``flip``: one bool, or one per sample; True where the crop was flipped horizontally AFTER it
        was taken.
        Raises TypeError for numbers that are not integers or flips that are not bool, ValueError for wrong lengths or
        keys.
        """
        if not isinstance(params, Tensor):
            params = _box(params) if isinstance(params, Mapping) else [_box(own) for own in params]
        box, flips = torch.as_tensor(params), torch.as_tensor(flip)
        if box.ndim not in (1, 2) or box.shape[-1] != 4 or box.numel() == 0:
            raise ValueError(
                f"params must be one (i, j, h, w) or a sequence of B of them, got shape {tuple(box.shape)}"
            )
        if box.dtype not in _INTEGERS:
            raise TypeError(f"params must be integers, got {box.dtype}")
        if flips.dtype != torch.bool:
            raise TypeError(f"flip must be bool, got {flips.dtype}")
        if flips.ndim > 0 and flips.shape != box.shape[:-1]:
            raise ValueError(f"flip must be one bool or one per sample, got {len(flips)} for {len(box)} samples")
        return cls(*(field.clone() for field in box.unbind(-1)), flips.expand(box.shape[:-1]).clone())

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "CropFlip":
        """The same transform on ``device``; asynchronous from pinned memory with ``non_blocking``."""
        return CropFlip(*(field.to(device, non_blocking=non_blocking) for field in self))

    def apply(self, images: Tensor) -> Tensor:
        """The augmented views of a batch: every image cropped, resized to its own size and mirrored, on its device.

        ``images``: [B, C, S_h, S_w], floating point or uint8, on the fields' device; of any subclass of Tensor, which
        is kept. Differentiable; waits for no device. Raises ValueError or TypeError for images or fields of another
        kind.
        """
        check_structure(self)
        _check_pixels(images, "images")
        if images.ndim != 4 or len(images) != len(self.top):
            raise ValueError(f"images must be [{len(self.top)}, C, S_h, S_w], one a crop, got {list(images.shape)}")
        height, width = images.shape[-2:]
        planes = images if images.dtype in (torch.float32, torch.float64) else images.float()
        rows, columns = (
            _source(start, length, size, planes)
            for start, length, size in ((self.top, self.height, height), (self.left, self.width, width))
        )
        columns = torch.where(self.flip[:, None], columns.flip(1), columns)
        grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
        aug = F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=True)
        return _like(aug, images)

    def matrix(self, image_size: int | Sequence[int]) -> Tensor:
        """Affine matrices [B, 3, 3], float64, from pixel coordinates of the original view to the augmented view.

        Pixel CENTRES are at integers: ``matrix @ (x, y, 1)`` with ``x_aug = (x - left + 0.5) * S_w / width - 0.5``,
        mirrored to ``S_w - 1 - x_aug`` where flipped; y likewise, never mirrored. ([3, 3] for 0-d fields.)
        A loss given this matrix is close to, but not, the loss given the CropFlip: a warp reads zero outside the view,
        and next to the crop's border it reads pixels from outside the crop, where the crop clamps at its own border;
        the outermost half pixel differs so.
        """
        height, width = _height_width(image_size)
        scale_x, scale_y = width / self.width.double(), height / self.height.double()
        shift_x = (0.5 - self.left.double()) * scale_x - 0.5
        shift_y = (0.5 - self.top.double()) * scale_y - 0.5
        zero, one = torch.zeros_like(scale_x), torch.ones_like(scale_x)
        row_x = torch.stack((scale_x, zero, shift_x), -1)
        mirrored = torch.stack((-scale_x, zero, width - 1 - shift_x), -1)
        row_x = torch.where(self.flip.unsqueeze(-1), mirrored, row_x)
        row_y = torch.stack((zero, scale_y, shift_y), -1)
        return torch.stack((row_x, row_y, torch.stack((zero, zero, one), -1)), -2)

    def check(self, image_size: int | Sequence[int]) -> None:
        """Raise TypeError or ValueError unless this is a [B] batch of crops inside a view of ``image_size``.

        Reads the values, so it synchronises when the tensors are on a GPU; :func:`check_structure` does not.
        """
        check_structure(self)
        check_values(self, image_size)


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
        self.size = _height_width(size, "size")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be (low, high) with 0 < low <= high <= 1, got {scale}")
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] < math.inf:
            raise ValueError(f"ratio must be (low, high) with 0 < low <= high, got {ratio}")
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], got {p}")
        self.scale, self.ratio, self.p = tuple(scale), tuple(ratio), p

    def __call__(self, view: Any) -> tuple[Any, CropFlip]:
        _check_view(view, self.size)
        if isinstance(view, Tensor) and view.ndim == 4:
            crop = self._draw(view.shape[:1], view.device)
            return crop.apply(view), crop
        crop = self._draw((), torch.device("cpu"))
        return (_crop_tensor if isinstance(view, Tensor) else _crop_image)(view, crop), crop

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


def _check_numbers(**numbers: Tensor) -> None:
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


def _box(params: Any) -> Any:
    """(top, left, height, width) of the dict that v2's make_params returns; anything else as it is."""
    if not isinstance(params, Mapping):
        return params
    if set(params) != set(_BOX):
        raise ValueError(
            f"params must hold {', '.join(_BOX)} alone, as those of RandomResizedCrop, got {', '.join(params)}; "
            "cgc_kernels.record follows any pipeline of torchvision's v2"
        )
    return [params[name] for name in _BOX]


def _source(start: Tensor, length: Tensor, size: int, like: Tensor) -> Tensor:
    """Where the pixels of the resized crop lie in the image: [B, size], scaled to [-1, 1] between pixel centres."""
    centres = torch.arange(size, device=like.device, dtype=like.dtype) + 0.5
    within = (centres * length[:, None] / size - 0.5).clamp(min=0)
    return (start[:, None] + torch.minimum(within, length[:, None] - 1)) * 2 / max(size - 1, 1) - 1


def _crop_tensor(view: Tensor, crop: CropFlip) -> Tensor:
    """Crop [C, H, W], resize it back, mirror it; exact where nothing is resized."""
    top, left, height, width, flip = (field.item() for field in crop)
    planes = view[None, :, top : top + height, left : left + width]
    if view.dtype == torch.uint8:
        planes = planes.float()
    # A crop is never larger than its view, so antialiasing would change nothing.
    aug = F.interpolate(planes, size=view.shape[-2:], mode="bilinear", align_corners=False)[0]
    return _like(aug.flip(-1) if flip else aug, view)


def _like(aug: Tensor, view: Tensor) -> Tensor:
    """``aug`` in the dtype and of the type of ``view``, a tv_tensors.Image for instance."""
    aug = (aug.round() if view.dtype == torch.uint8 else aug).to(view.dtype)
    return aug if type(aug) is type(view) else aug.as_subclass(type(view))


def _crop_image(view: Any, crop: CropFlip) -> Any:
    """The same for a PIL image."""
    from PIL import Image

    top, left, height, width, flip = (field.item() for field in crop)
    # Not resize(box=...): that filter reads across the crop's border, and ours clamps there.
    aug = view.crop((left, top, left + width, top + height)).resize(view.size, Image.Resampling.BILINEAR)
    return aug.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else aug


def _check_view(view: Any, size: tuple[int, int]) -> None:
    if isinstance(view, Tensor):
        if view.ndim not in (3, 4):
            raise ValueError(f"view must have shape [C, H, W] or [B, C, H, W], got {list(view.shape)}")
        _check_pixels(view, "view")
        got = tuple(view.shape[-2:])
    elif hasattr(view, "crop") and hasattr(view, "transpose"):
        got = (view.size[1], view.size[0])
    else:
        raise TypeError(f"view must be a PIL image or a tensor [C, H, W] or [B, C, H, W], got {type(view).__name__}")
    if got != size:
        raise ValueError(
            f"view must be {size[0]} x {size[1]} (height x width), the size at which its heatmap is cropped, "
            f"got {got[0]} x {got[1]}; bring the image to that size first"
        )


def _check_pixels(tensor: Tensor, name: str) -> None:
    if not tensor.is_floating_point() and tensor.dtype != torch.uint8:
        raise TypeError(f"{name} must be floating point or uint8, got {tensor.dtype}")


def check_structure(crop: CropFlip) -> None:
    """The part of :meth:`CropFlip.check` that reads no value: tensors, dtypes, equal shapes [B], one device."""
    top = crop.top
    shape, device = (top.shape, top.device) if isinstance(top, Tensor) else (None, None)
    for name, field, dtypes in zip(CropFlip._fields, crop, _DTYPES, strict=True):
        if not isinstance(field, Tensor):
            raise TypeError(f"CropFlip.{name} must be a tensor, got {type(field).__name__}")
        if field.dtype not in dtypes:
            kind = "a bool" if name == "flip" else "an integer"
            raise TypeError(f"CropFlip.{name} must be {kind} tensor, got {field.dtype}")
        if field.shape != shape or len(shape) != 1:
            wanted = f"{list(shape)} like top" if field.ndim == 1 else "[B]"
            raise ValueError(f"CropFlip.{name} must have shape {wanted}, got {list(field.shape)}")
        if field.device != device:
            raise ValueError(f"CropFlip.{name} must be on {device} like top, got {field.device}")


def check_values(crop: CropFlip, image_size: int | Sequence[int]) -> None:
    """The part of :meth:`CropFlip.check` that reads values (a device sync): crops non-empty and inside the view."""
    check_boxes(crop, *_height_width(image_size))


def check_boxes(crop: CropFlip, view_height: int, view_width: int) -> None:
    """The same for a size that is known to be right."""
    # Lists: for the few numbers of a batch faster than operators, and sums of Python's integers never wrap around.
    top, left, height, width = crop.top.tolist(), crop.left.tolist(), crop.height.tolist(), crop.width.tolist()
    for y, x, h, w in zip(top, left, height, width, strict=True):
        if not (h > 0 <= y <= view_height - h and w > 0 <= x <= view_width - w):
            break
    else:
        return
    for name, values in (("height", height), ("width", width)):
        _explain(name, values, [value >= 1 for value in values], "at least 1")
    for name, values in (("top", top), ("left", left)):
        _explain(name, values, [value >= 0 for value in values], "at least 0")
    for name, first, side, most in (("top", top, "height", view_height), ("left", left, "width", view_width)):
        ends = list(map(add, first, height if side == "height" else width))
        _explain(f"{name} + {side}", ends, [end <= most for end in ends], f"at most the view's {side} {most}")


def _explain(name: str, values: list[int], valid: list[bool], rule: str) -> None:
    """Raise ValueError naming the first value that breaks ``rule``."""
    if not all(valid):
        index = valid.index(False)
        raise ValueError(f"CropFlip.{name} must be {rule}, got {values[index]} at index {index}")


def _height_width(size: int | Sequence[int], name: str = "image_size") -> tuple[int, int]:
    pair = (size, size) if isinstance(size, Integral) else size
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(_is_integer, pair)):
        raise TypeError(f"{name} must be an int or (height, width), got {size!r}")
    if min(pair) < 1:
        raise ValueError(f"{name} must be at least 1 pixel each way, got {size!r}")
    return int(pair[0]), int(pair[1])


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
