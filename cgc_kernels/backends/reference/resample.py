"""Stage resample: heatmaps, transform -> unit rows and positives, on the fine grid."""

import torch

from ...transforms import CropFlip
from .damping import damp_near_blind, damp_near_dead

_VALUES = (
    "backend must be another than 'reference', which reads the crops' values, where torch traces a call without them "
    "(make_fx, export, FakeTensor, meta)"
)


def resample(
    heatmaps: torch.Tensor,
    aug_heatmaps: torch.Tensor,
    transform: CropFlip | torch.Tensor,
    image_size: tuple[int, int],
    eps: float,
    objective: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit fine maps and the cosine of each positive pair (CGC, section 3; released code).

    Args:
        heatmaps: of the original views, [B, H, W].
        aug_heatmaps: of the augmented views, [B, H, W].
        transform: a CropFlip, or the inverse matrices [B, 3, 3] (augmented pixel -> original pixel).
        image_size: (S_h, S_w).
        eps: added to the sum and to the quotient.
        objective: one of OBJECTIVES.

    Returns:
        rows, keys: [B, S_h * S_w], unit vectors whose products are the cosines that `objective` contrasts.
        positives: [B], cosine of the augmented map and the transformed original.
    """
    augmented = unit(fine_maps(aug_heatmaps, image_size, eps), eps)
    transformed = unit(transform_maps(fine_maps(heatmaps, image_size, eps), transform), eps)
    positives = (augmented * transformed).sum(dim=1)
    if objective == "released":
        return augmented, augmented, positives
    return transformed, augmented, positives


def fine_maps(heatmaps: torch.Tensor, image_size: tuple[int, int], eps: float) -> torch.Tensor:
    """Upsampled and normalised maps, [B, S_h, S_w]."""
    sums = _upsample(heatmaps.detach(), image_size).sum(dim=(1, 2))
    fine = _upsample(damp_near_dead(heatmaps, sums, eps), image_size)
    return fine / (fine.sum(dim=(1, 2), keepdim=True) + eps) + eps


def transform_maps(maps: torch.Tensor, transform: CropFlip | torch.Tensor) -> torch.Tensor:
    """T(m) for every map of [B, S_h, S_w]."""
    if isinstance(transform, CropFlip):
        return torch.stack([_crop_flip(m, *crop) for m, *crop in zip(maps, *_read(transform), strict=True)])
    return _warp(maps, transform)


def _read(transform: CropFlip) -> list[list[int]] | CropFlip:
    """The fields' values, which torch.compile reads itself; raises RuntimeError where there are none."""
    if torch.compiler.is_exporting():
        raise RuntimeError(_VALUES)
    if torch.compiler.is_compiling():
        return transform
    try:
        return [[int(value) for value in field] for field in transform]
    except RuntimeError as error:  # by fake, meta and traced tensors
        raise RuntimeError(_VALUES) from error


def unit(maps: torch.Tensor, eps: float) -> torch.Tensor:
    """Flattened maps divided by their L2 norm, [B, S_h * S_w]; a map that is zero stays zero.

    In two steps, the first by the norm as a number: the derivative of 1 / norm would overflow where a view is
    near-blind.
    """
    norms = _norms(maps.detach())
    maps = damp_near_blind(maps / norms[:, None, None], norms, eps)
    return (maps / _norms(maps)[:, None, None]).flatten(start_dim=1)


def _norms(maps):
    square = maps.double().square().sum(dim=(1, 2))  # of a near-blind view below float32's range
    return torch.where(square == 0, 1.0, square).sqrt().to(maps.dtype)


def _upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear, align_corners=False."""
    return _stretch(_stretch(maps, 1, size[0]), 2, size[1])


def _stretch(maps, dim, size):
    """Along one axis; as integers, in units of 1 / (2 size), the positions are exact: F.interpolate rounds them, and so
    gives a share of 1e-15 to a value that a pixel does not see."""
    values, pixel = maps.shape[dim], torch.arange(size, device=maps.device)
    position = ((2 * pixel + 1) * values - size).clamp(0, (values - 1) * 2 * size)
    low = position // (2 * size)
    share = ((position % (2 * size)).double() / (2 * size)).to(maps.dtype)
    share = share[:, None] if dim == 1 else share
    at_low, at_high = maps.index_select(dim, low), maps.index_select(dim, (low + 1).clamp_max(values - 1))
    return at_low * (1 - share) + at_high * share


def _crop_flip(fine, top, left, height, width, flip):
    crop = fine[top : top + height, left : left + width]
    resized = _upsample(crop[None], fine.shape)[0]
    return resized.flip(1) if flip else resized


def _warp(maps: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Bilinear samples at inverse @ (x, y, 1), zero outside and where the homogeneous denominator is <= 0."""
    rows, columns = maps.shape[1:]
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=inverse.dtype, device=maps.device),
        torch.arange(columns, dtype=inverse.dtype, device=maps.device),
        indexing="ij",
    )
    x, y, z = torch.einsum("bij,jhw->ibhw", inverse, torch.stack([x, y, torch.ones_like(x)]))
    x, y = x / z, y / z
    seen = (z > 0) & x.isfinite() & y.isfinite()
    x, y = (torch.where(seen, p, -2).clamp(-2, size + 1) for p, size in ((x, columns), (y, rows)))
    left, top = x.floor(), y.floor()
    # Not grid_sample, whose positions between -1 and 1 are rounded: it sees 1e-16 of a pixel just outside the map.
    return sum(
        _tap(maps, top + down, left + right) * ((1 - (y - top - down).abs()) * (1 - (x - left - right).abs()))
        for down in (0, 1)
        for right in (0, 1)
    ).to(maps.dtype)


def _tap(maps, row, column):
    """One pixel [B, S_h, S_w] of each map for each pixel, zero outside."""
    rows, columns = maps.shape[1:]
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    place = row.clamp(0, rows - 1).long() * columns + column.clamp(0, columns - 1).long()
    return torch.where(inside, maps.flatten(1).gather(1, place.flatten(1)).view_as(maps), 0)
