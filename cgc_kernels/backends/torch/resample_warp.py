"""Affine and perspective warps of the fine map, a few samples at a time, recomputed in the backward."""

import torch
from torch.utils.checkpoint import checkpoint

from .chunks import samples
from .resample_geometry import sandwich

# Elements of one chunk of fine maps.
CHUNK_ELEMENTS = 1 << 20


def warp(
    maps: torch.Tensor, inverse: torch.Tensor, upsample_y: torch.Tensor, upsample_x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Warp normalised coarse maps on the fine grid.

    Args:
        maps: m, [B, H, W].
        inverse: [B, 3, 3], augmented pixel -> original pixel, centres at integers.
        upsample_y, upsample_x: U_H [S_h, H] and U_W [S_w, W].

    Returns:
        U_H^T T(U_H m U_W^T) U_W, [B, H, W], and ||T(U_H m U_W^T)||^2, [B, 1, 1].
    """
    step = samples(CHUNK_ELEMENTS, len(upsample_y) * len(upsample_x), maps.device)
    parts = [
        checkpoint(_warp_chunk, *chunk, upsample_y, upsample_x, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(maps.split(step), inverse.split(step), strict=True)
    ]
    images, squares = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(squares)


def _warp_chunk(maps, inverse, upsample_y, upsample_x):
    seen = _sample(sandwich(upsample_y, maps, upsample_x), inverse)
    return sandwich(upsample_y.T, seen, upsample_x.T), seen.square().sum(dim=(1, 2), keepdim=True)


def _sample(fine, inverse):
    """Bilinear samples of fine [b, S_h, S_w] at inverse @ (x, y, 1): four taps, those outside the map weigh nothing."""
    x, y = _sources(inverse, *fine.shape[1:])
    left, top = x.floor(), y.floor()
    right_share, bottom_share = x - left, y - top
    total = 0
    for row, row_share in ((top, 1 - bottom_share), (top + 1, bottom_share)):
        for column, column_share in ((left, 1 - right_share), (left + 1, right_share)):
            total = total + _tap(fine, row, column) * (row_share * column_share).to(fine.dtype)
    return total


def _sources(inverse, height, width):
    """Source positions x, y, [b, S_h, S_w]; pixels that see nothing are sent outside the map."""
    y = torch.arange(height, dtype=inverse.dtype, device=inverse.device)[:, None]
    x = torch.arange(width, dtype=inverse.dtype, device=inverse.device)
    first, second, depth = (
        (r[:, 0, None, None] * x + r[:, 1, None, None] * y + r[:, 2, None, None]) for r in inverse.unbind(1)
    )
    first, second = first / depth, second / depth
    visible = (depth > 0) & first.isfinite() & second.isfinite()
    return torch.where(visible, first, -2).clamp(-2, width + 1), torch.where(visible, second, -2).clamp(-2, height + 1)


def _tap(fine, row, column):
    height, width = fine.shape[1:]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
    values = fine.flatten(start_dim=1).gather(1, index.flatten(start_dim=1)).view_as(fine)
    return torch.where(inside, values, 0)
