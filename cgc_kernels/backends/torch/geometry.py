"""Bilinear upsampling and crop-resize-flip as small matrices (docs/mathematics.md, section 2)."""

import torch

from ...options import widest_dtype
from ...transforms import CropFlip

# Elements of the largest temporary, [samples, S, n].
CHUNK_ELEMENTS = 1 << 20


def upsampling(size: int, cells: int, device: torch.device) -> torch.Tensor:
    """U, [size, cells]: bilinear upsampling of `cells` values to `size` (align_corners=False) as a matrix."""
    dtype = widest_dtype(device)
    pixels = torch.arange(size, dtype=dtype, device=device)
    position = ((pixels + 0.5) * (cells / size) - 0.5).clamp(0, cells - 1)
    return (1 - (position[:, None] - torch.arange(cells, dtype=dtype, device=device)).abs()).clamp_min(0)


def crop_products(transform: CropFlip, upsample_y: torch.Tensor, upsample_x: torch.Tensor):
    """P = U^T R U and Q = (R U)^T (R U) of every sample, along y and along x.

    Returns ((P_y, Q_y), (P_x, Q_x)), [B, H, H] and [B, W, W].
    """
    unflipped = torch.zeros_like(transform.flip)
    along_y = _products(upsample_y, transform.top, transform.height, unflipped)
    along_x = _products(upsample_x, transform.left, transform.width, transform.flip)
    return along_y, along_x


def _products(upsample, start, length, flip):
    step = max(1, CHUNK_ELEMENTS // upsample.numel())
    parts = []
    for first in range(0, len(start), step):
        part = slice(first, first + step)
        cropped = _crop_rows(upsample, start[part], length[part], flip[part])
        parts.append((upsample.T @ cropped, cropped.mT @ cropped))
    through, gram = zip(*parts, strict=True)
    return torch.cat(through), torch.cat(gram)


def _crop_rows(upsample, start, length, flip):
    """R U, [b, size, cells]: each row blends the two rows of U around the crop's clamped source position."""
    size = len(upsample)
    length = length[:, None].to(upsample.dtype)
    pixels = torch.arange(size, device=upsample.device)
    pixels = torch.where(flip[:, None], size - 1 - pixels, pixels).to(upsample.dtype)
    last = length - 1
    position = torch.minimum(((pixels + 0.5) * (length / size) - 0.5).clamp_min(0), last)
    low = position.floor()
    high = torch.minimum(low + 1, last)
    fraction = (position - low)[..., None]
    return _rows(upsample, start, low) * (1 - fraction) + _rows(upsample, start, high) * fraction


def _rows(upsample, start, offset):
    """Rows start + offset of U; clamped, so that a crop outside the view reads no memory outside U."""
    return upsample[(start[:, None] + offset.long()).clamp(0, len(upsample) - 1)]
