"""The record of a crop and a flip."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tensors import described, is_dense, misplaced
from ..trees import from_iterables
from .checks import INTEGERS, check_pixels, check_structure, check_values, height_width, is_integer
from .cropping import crop_batch

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
        height, width = height_width(image_size)
        if not is_integer(batch) or not 0 <= batch < 1 << 31:
            raise (ValueError if is_integer(batch) else TypeError)(f"batch must be an integer >= 0, got {batch!r}")
        zeros = torch.zeros(batch, dtype=torch.int64)
        return cls(zeros, zeros.clone(), zeros + height, zeros + width, zeros.bool())

    @classmethod
    def from_rows(cls, rows: Tensor) -> "CropFlip":
        """From integers [..., 5], (top, left, height, width, flip) in a row, flip 0 or 1; the fields are views of it.

        Raises TypeError or ValueError for another dtype or shape.
        """
        if not is_dense(rows) or rows.dtype not in INTEGERS:
            got = rows.dtype if is_dense(rows) else described(rows)
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
        if isinstance(params, Sequence):
            params = [_box(own) for own in params]
        box = _numbers("params", _box(params), "one (i, j, h, w) or a sequence of B of them")
        flips = _numbers("flip", flip, "one bool or one per sample")
        if box.ndim not in (1, 2) or box.shape[-1] != 4 or box.numel() == 0:
            raise ValueError(
                f"params must be one (i, j, h, w) or a sequence of B of them, got shape {tuple(box.shape)}"
            )
        if box.dtype not in INTEGERS:
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
        check_pixels(images, "images")
        if images.device != self.top.device:
            raise ValueError(misplaced("images", images, self.top.device, "the crops"))
        if images.ndim != 4 or len(images) != len(self.top):
            raise ValueError(f"images must be [{len(self.top)}, C, S_h, S_w], one a crop, got {list(images.shape)}")
        return crop_batch(images, self)

    def matrix(self, image_size: int | Sequence[int]) -> Tensor:
        """Affine matrices [B, 3, 3], float64, from pixel coordinates of the original view to the augmented view.

        Pixel CENTRES are at integers: ``matrix @ (x, y, 1)`` with ``x_aug = (x - left + 0.5) * S_w / width - 0.5``,
        mirrored to ``S_w - 1 - x_aug`` where flipped; y likewise, never mirrored. ([3, 3] for 0-d fields.)
        A loss given this matrix is close to, but not, the loss given the CropFlip: a warp reads zero outside the view,
        and next to the crop's border it reads pixels from outside the crop, where the crop clamps at its own border;
        the outermost half pixel differs so.
        """
        height, width = height_width(image_size)
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

        Reads the values, so it synchronises when the tensors are on a GPU; :func:`.check_structure` does not.
        """
        check_structure(self)
        check_values(self, image_size)


def _numbers(name: str, given: Any, rule: str) -> Tensor:
    """What is given in numbers, as a tensor."""
    try:
        tensor = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be {rule}, got {described(given)}") from None
    if not is_dense(tensor):
        raise TypeError(f"{name} must be {rule}, got {described(given)}")
    return tensor


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
