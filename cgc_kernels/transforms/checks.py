"""What a CropFlip must be, and the views it is made of: types, shapes, boxes inside the view."""

from collections.abc import Sequence
from numbers import Integral
from operator import add
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..options import LARGEST_IMAGE
from ..tensors import described, is_dense, misplaced

if TYPE_CHECKING:
    from .crop_flip import CropFlip

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_DTYPES = (INTEGERS,) * 4 + ((torch.bool,),)  # of the fields of CropFlip


def check_structure(crop: "CropFlip") -> None:
    """The part of :meth:`.CropFlip.check` that reads no value: tensors, dtypes, equal shapes [B], one device."""
    top = crop.top
    shape, device = (top.shape, top.device) if is_dense(top) else (None, None)
    for name, field, dtypes in zip(crop._fields, crop, _DTYPES, strict=True):
        if not is_dense(field):
            got = described(field) if isinstance(field, Tensor) else type(field).__name__
            raise TypeError(f"CropFlip.{name} must be a tensor, got {got}")
        if field.dtype not in dtypes:
            kind = "a bool" if name == "flip" else "an integer"
            raise TypeError(f"CropFlip.{name} must be {kind} tensor, got {field.dtype}")
        if field.shape != shape or len(shape) != 1:
            wanted = f"{list(shape)} like top" if field.ndim == 1 else "[B]"
            raise ValueError(f"CropFlip.{name} must have shape {wanted}, got {list(field.shape)}")
        if field.device != device:
            raise ValueError(misplaced(f"CropFlip.{name}", field, device, "top"))


def check_values(crop: "CropFlip", image_size: int | Sequence[int]) -> None:
    """The part of :meth:`.CropFlip.check` that reads values (a device sync): crops non-empty and inside the view."""
    check_boxes(crop, *height_width(image_size))


def check_boxes(crop: "CropFlip", view_height: int, view_width: int) -> None:
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


def check_view(view: Any, size: tuple[int, int]) -> None:
    if isinstance(view, Tensor):
        check_pixels(view, "view")
        if view.ndim not in (3, 4):
            raise ValueError(f"view must have shape [C, H, W] or [B, C, H, W], got {list(view.shape)}")
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


def check_pixels(tensor: Tensor, name: str) -> None:
    if not is_dense(tensor):
        raise TypeError(f"{name} must be a dense tensor, got {described(tensor)}")
    if not tensor.is_floating_point() and tensor.dtype != torch.uint8:
        raise TypeError(f"{name} must be floating point or uint8, got {tensor.dtype}")


def height_width(size: int | Sequence[int], name: str = "image_size") -> tuple[int, int]:
    """The sides of a view; raises TypeError or ValueError for what is no size."""
    pair = (size, size) if is_integer(size) else size
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(is_integer, pair)):
        raise TypeError(f"{name} must be an int or (height, width), got {described(size)}")
    if min(pair) < 1:
        raise ValueError(f"{name} must be at least 1 pixel each way, got {size!r}")
    if max(pair) > LARGEST_IMAGE:
        raise ValueError(f"{name} must be at most {LARGEST_IMAGE} pixels each way, got {size!r}")
    return int(pair[0]), int(pair[1])


def is_integer(value: Any) -> bool:
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))
