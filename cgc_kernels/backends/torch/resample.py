"""Stage resample: heatmaps, transform -> unit rows and positives, as H x W algebra (docs/mathematics.md, section 2).

In the widest dtype of the device throughout: everything here is as small as a heatmap. The gradient of each step is
written out (section 3): on a GPU a step costs what its operators cost to launch.
"""

import torch

from ...options import NEAR_DEAD_SUM
from ...transforms import CropFlip
from .function import apply_in_reverse
from .resample_geometry import crop_products, dot, grid, sandwich
from .resample_warp import warp


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
        objective: one of OBJECTIVES.

    Returns:
        rows, keys: [B, H * W]; <row_i, key_j> is the cosine that `objective` contrasts.
        positives: [B]; float64 for "mse", whose 1 - positive cancels.
    """
    coarse = grid(image_size, heatmaps)
    original, augmented, *_ = apply_in_reverse(_Normalise, heatmaps, aug_heatmaps, coarse.share, eps)
    if isinstance(transform, CropFlip):
        seen, square, _ = apply_in_reverse(_Crop, original, *crop_products(transform, coarse))
    else:
        seen, square = warp(original, transform, *coarse.upsample)
    unit, image, seen, positives, *_ = apply_in_reverse(_Cosines, augmented, seen, square, *coarse.gram, eps)
    rows, keys = (unit, image) if objective == "released" else (seen, unit)
    dtype = heatmaps.dtype
    return (
        rows.flatten(1).to(dtype),
        keys.flatten(1).to(dtype),
        positives if objective == "mse" else positives.to(dtype),
    )


class _Normalise(torch.autograd.Function):
    """m = M / (s + eps) + eps of both views' heatmaps [B, H, W], where s is the sum of the upsampled map.

    The gradient of a map with s < s_min, near-dead, is multiplied by (s + eps) / s_min. Returns the two, and what the
    backward needs: M / (s + eps) and s + eps of both.
    """

    @staticmethod
    def forward(heatmaps, aug_heatmaps, share, eps):
        maps = torch.stack((heatmaps, aug_heatmaps)).to(share.dtype)
        divisor = (maps.view(-1, share.numel()).mv(share.flatten()) + eps).view(2, -1, 1, 1)
        maps = maps / divisor
        return *(maps + eps).unbind(), maps, divisor

    @staticmethod
    def setup_context(ctx, inputs, output):
        *_, maps, divisor = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(maps, divisor)
        ctx.save_for_backward(maps, divisor, inputs[2])
        ctx.dtype, ctx.eps = inputs[0].dtype, inputs[3]

    @staticmethod
    def backward(ctx, grad, aug_grad, *_):
        maps, divisor, share = ctx.saved_tensors
        grads = torch.stack((grad, aug_grad))
        inner = dot(grads.flatten(0, 1), maps.flatten(0, 1)).view_as(divisor)
        grads = torch.addcmul(grads, inner, share, value=-1)
        grads = grads / divisor.masked_fill(divisor < NEAR_DEAD_SUM + ctx.eps, NEAR_DEAD_SUM)
        return *grads.to(ctx.dtype).unbind(), None, None


class _Crop(torch.autograd.Function):
    """The original maps o as the crops show them: P o P^T [B, H, W] and <o, Q o Q> [B, 1, 1]; and Q o Q."""

    @staticmethod
    def forward(original, p_y, q_y, p_x, q_x):
        image = sandwich(q_y, original, q_x)
        return sandwich(p_y, original, p_x), dot(original, image), image

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, p_y, _, p_x, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(p_y, p_x, output[2])

    @staticmethod
    def backward(ctx, grad_seen, grad_square, _):
        p_y, p_x, image = ctx.saved_tensors
        grad = sandwich(p_y.mT, grad_seen, p_x.mT)
        return torch.addcmul(grad, grad_square, image, value=2), None, None, None, None


class _Cosines(torch.autograd.Function):
    """a / ||a||, K a K / ||a|| and T(o) / ||T(o)||, [B, H, W], of the augmented maps a and the originals as they are
    seen, and the cosine of each pair, [B]; and 1 / ||a||, 1 / ||T(o)||, [B, 1, 1].

    seen: U^T T(o) U, [B, H, W]; square: ||T(o)||^2, [B, 1, 1]. The gradient of a view with ||T(o)|| < eps, near-blind,
    is multiplied by ||T(o)|| / eps.
    """

    @staticmethod
    def forward(augmented, seen, square, gram_y, gram_x, eps):
        image = sandwich(gram_y, augmented, gram_x)
        scale, seen_scale = _inverse_root(dot(augmented, image)), _inverse_root(square)
        unit, seen = augmented * scale, seen * seen_scale
        return unit, image * scale, seen, dot(unit, seen).flatten(), scale, seen_scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        unit, image, seen, _, scale, seen_scale = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(scale, seen_scale)
        ctx.save_for_backward(unit, image, seen, scale, seen_scale, *inputs[3:5])
        ctx.eps = inputs[5]

    @staticmethod
    def backward(ctx, *grads):
        unit, image, seen, scale, seen_scale, gram_y, gram_x = ctx.saved_tensors
        outputs = unit, image, seen, scale.flatten()
        grads = [torch.zeros_like(o) if g is None else g for o, g in zip(outputs, grads[:4], strict=True)]
        grad_unit, grad_image, grad_seen, grad_positives = grads
        grad_positives = grad_positives[:, None, None]
        grad_unit = sandwich(gram_y, grad_image, gram_x, plus=torch.addcmul(grad_unit, grad_positives, seen))
        grad_augmented = torch.addcmul(grad_unit, dot(grad_unit, unit), image, value=-1) * scale
        grad_seen = torch.addcmul(grad_seen, grad_positives, unit) * seen_scale.clamp_max(1 / ctx.eps)
        grad_square = dot(grad_seen, seen) * seen_scale * -0.5
        return grad_augmented, grad_seen, grad_square, None, None, None


def _inverse_root(square):
    """1 / sqrt; 0 for a map that sees nothing, so that its cosine and its gradient are 0."""
    return square.rsqrt().nan_to_num(nan=torch.nan, posinf=0.0, neginf=0.0)
