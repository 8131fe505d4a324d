"""Stage resample: heatmaps, transform -> unit rows and positives, as H x W algebra (docs/mathematics.md, section 2)."""

import torch

from ...options import widest_dtype
from ...transforms import CropFlip
from ..plain import damp_near_dead
from .geometry import crop_products, upsampling
from .warp import warp


def resample(
    heatmaps: torch.Tensor,
    aug_heatmaps: torch.Tensor,
    transform: CropFlip | torch.Tensor,
    image_size: tuple[int, int],
    eps: float,
    objective: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit coarse rows whose products are the cosines of the fine maps, and the cosine of each positive pair.

    Args:
        heatmaps: of the original views, [B, H, W].
        aug_heatmaps: of the augmented views, [B, H, W].
        transform: a CropFlip, or the inverse matrices [B, 3, 3] (augmented pixel -> original pixel).
        image_size: (S_h, S_w).
        eps: added to the sum and to the quotient.
        objective: "released", "paper" or "mse".

    Returns:
        rows, keys: [B, H * W]; <row_i, key_j> is the cosine that `objective` contrasts.
        positives: [B]; float64 for "mse", whose 1 - positive cancels.
    """
    device = heatmaps.device
    dtype = widest_dtype(device) if objective == "mse" else heatmaps.dtype
    exact_y, exact_x = (upsampling(s, n, device) for s, n in zip(image_size, heatmaps.shape[1:], strict=True))
    upsample_y, upsample_x = exact_y.to(dtype), exact_x.to(dtype)
    original = _normalise(heatmaps, upsample_y, upsample_x, eps)
    augmented = _normalise(aug_heatmaps, upsample_y, upsample_x, eps)

    image = (exact_y.T @ exact_y).to(dtype) @ augmented @ (exact_x.T @ exact_x).to(dtype)
    aug_scale = _inverse_root(_dot(augmented, image))
    aug_unit, aug_image = augmented * aug_scale, image * aug_scale

    if isinstance(transform, CropFlip):
        (p_y, q_y), (p_x, q_x) = crop_products(transform, exact_y, exact_x)
        seen = p_y.to(dtype) @ original @ p_x.to(dtype).mT
        square = _dot(original, q_y.to(dtype) @ original @ q_x.to(dtype))
    else:
        seen, square = warp(original, transform, upsample_y, upsample_x)
    seen_unit = seen * _inverse_root(square)

    positives = _dot(aug_unit, seen_unit)
    rows, keys = (aug_unit, aug_image) if objective == "released" else (seen_unit, aug_unit)
    return rows.flatten(start_dim=1), keys.flatten(start_dim=1), positives


def _normalise(heatmaps, upsample_y, upsample_x, eps):
    """m = M / (s + eps) + eps, where s is the sum of the upsampled map."""
    share = torch.outer(upsample_y.sum(dim=0), upsample_x.sum(dim=0))
    sums = _dot(heatmaps.detach().to(share.dtype), share)
    heatmaps = damp_near_dead(heatmaps, sums, eps).to(share.dtype)
    return heatmaps / (_dot(heatmaps, share) + eps)[:, None, None] + eps


def _inverse_root(square):
    """1 / sqrt, [B, 1, 1]; 0 for a map that sees nothing, so that its cosine and its gradient are 0."""
    seen = square != 0
    return torch.where(seen, torch.where(seen, square, 1).rsqrt(), 0)[:, None, None]


def _dot(a, b):
    return (a * b).sum(dim=(1, 2))
