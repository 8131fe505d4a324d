"""Random crops of whole batches at once, and their exact application to images and to heatmaps."""

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from cgc_kernels import CropFlip

SCALE = (0.4, 1.0)  # area of the crop, share of the image
RATIO = (3 / 4, 4 / 3)  # width / height
ATTEMPTS = 10


def random_crops(batch: int, size: int, generator: Generator) -> CropFlip:
    """Draw crops by the rule of RandomResizedCrop: area and aspect ratio at random until the crop fits, else all of it.

    Nothing is flipped: a mirrored digit is another sign.

    Args:
        batch: number of crops B.
        size: side of the square images in pixels.
        generator: CPU random state, advanced by the same amount whatever is drawn.

    Returns:
        CropFlip of int64 [B] tensors and bool flip [B], on the CPU.

    Example:
        >>> random_crops(8, 64, torch.Generator().manual_seed(0)).height.shape
        torch.Size([8])
    """
    area, ratio, across, down = torch.rand(4, batch, ATTEMPTS, generator=generator, dtype=torch.float64)
    area = size * size * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
    ratio = torch.exp(math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * ratio)
    width, height = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    first = ((width <= size) & (height <= size)).long().argmax(1, keepdim=True)  # 0 if none fits: clamped below
    width, height = (side.gather(1, first)[:, 0].clamp(max=size) for side in (width, height))
    top = (down[:, 0] * (size - height + 1)).long()
    left = (across[:, 0] * (size - width + 1)).long()
    return CropFlip(top, left, height, width, torch.zeros(batch, dtype=torch.bool))


def apply_crops(images: Tensor, crops: CropFlip) -> Tensor:
    """Crop every image and resize it bilinearly to its old size, edges clamped at the crop's own border.

    Args:
        images: floating point [B, K, S_h, S_w].
        crops: one crop per image, on the images' device.

    Returns:
        Tensor like images.

    Example:
        >>> crops = random_crops(2, 64, torch.Generator().manual_seed(0))
        >>> apply_crops(torch.rand(2, 3, 64, 64), crops).shape
        torch.Size([2, 3, 64, 64])
    """
    rows = _source(crops.top, crops.height, images.shape[2], images)
    columns = _source(crops.left, crops.width, images.shape[3], images)
    columns = torch.where(crops.flip[:, None], columns.flip(1), columns)
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _source(start: Tensor, length: Tensor, size: int, like: Tensor) -> Tensor:
    """Where the pixels of the resized crop lie in the image: [B, size], scaled to [-1, 1] between pixel centres."""
    centres = torch.arange(size, device=like.device, dtype=like.dtype) + 0.5
    within = (centres * length[:, None] / size - 0.5).clamp(min=0)
    return (start[:, None] + torch.minimum(within, length[:, None] - 1)) * 2 / (size - 1) - 1
