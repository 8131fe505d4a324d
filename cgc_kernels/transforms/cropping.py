"""Crop, bilinear resize and flip of pixels: of one view, a tensor or a PIL image, and of a batch in one grid."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .crop_flip import CropFlip


def crop_batch(images: Tensor, crop: "CropFlip") -> Tensor:
    """Crop each of [B, C, H, W], resize it back, mirror it: one read of all through a grid, on their device."""
    height, width = images.shape[-2:]
    planes = images if images.dtype in (torch.float32, torch.float64) else images.float()
    rows, columns = (
        _source(start, length, size, planes)
        for start, length, size in ((crop.top, crop.height, height), (crop.left, crop.width, width))
    )
    columns = torch.where(crop.flip[:, None], columns.flip(1), columns)
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
    aug = F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return _like(aug, images)


def crop_tensor(view: Tensor, crop: "CropFlip") -> Tensor:
    """Crop [C, H, W], resize it back, mirror it; exact where nothing is resized."""
    top, left, height, width, flip = (field.item() for field in crop)
    planes = view[None, :, top : top + height, left : left + width]
    if view.dtype == torch.uint8:
        planes = planes.float()
    # A crop is never larger than its view, so antialiasing would change nothing.
    aug = F.interpolate(planes, size=view.shape[-2:], mode="bilinear", align_corners=False)[0]
    return _like(aug.flip(-1) if flip else aug, view)


def crop_image(view: Any, crop: "CropFlip") -> Any:
    """The same for a PIL image."""
    from PIL import Image

    top, left, height, width, flip = (field.item() for field in crop)
    # Not resize(box=...): that filter reads across the crop's border, and ours clamps there.
    aug = view.crop((left, top, left + width, top + height)).resize(view.size, Image.Resampling.BILINEAR)
    return aug.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else aug


def _source(start: Tensor, length: Tensor, size: int, like: Tensor) -> Tensor:
    """Where the pixels of the resized crop lie in the image: [B, size], scaled to [-1, 1] between pixel centres."""
    centres = torch.arange(size, device=like.device, dtype=like.dtype) + 0.5
    within = (centres * length[:, None] / size - 0.5).clamp(min=0)
    return (start[:, None] + torch.minimum(within, length[:, None] - 1)) * 2 / max(size - 1, 1) - 1


def _like(aug: Tensor, view: Tensor) -> Tensor:
    """``aug`` in the dtype and of the type of ``view``, a tv_tensors.Image for instance."""
    aug = (aug.round() if view.dtype == torch.uint8 else aug).to(view.dtype)
    return aug if type(aug) is type(view) else aug.as_subclass(type(view))
