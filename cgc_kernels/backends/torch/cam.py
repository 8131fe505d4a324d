"""Stage cam: features, gradients -> heatmaps; what needs a temporary works on a few samples at a time."""

import math

import torch

from ...options import accumulation_dtype
from .chunks import samples
from .function import apply_in_reverse

# Elements of a temporary: large enough to be efficient, small beside a feature tensor.
CHUNK_ELEMENTS = 1 << 21


def cam(features: torch.Tensor, gradients: torch.Tensor, weighting: str) -> torch.Tensor:
    """Heatmaps ReLU(sum_c weight_c * A_c), [B, H, W], float64 for float64 features and float32 otherwise.

    features: A, [B, C, H, W]; gradients: G, [B, C, H, W] or pooled [B, C]; weighting: "gradcam" or "elementwise".
    Sums with a weight for each channel are matrix products, of float32 as exact as torch's matmul precision says.
    """
    if weighting == "gradcam" and gradients.dim() == 4:
        gradients = apply_in_reverse(_MeanOverSpace, gradients, accumulation_dtype(features))
    return torch.relu(apply_in_reverse(_WeightedSum, features, gradients))


class _MeanOverSpace(torch.autograd.Function):
    """Mean of G [B, C, H, W] over space, in `dtype`; its gradient is constant over space: expanded with stride 0."""

    @staticmethod
    def forward(gradients, dtype):
        def mean(part, out):
            return torch.mean(gradients[part], dim=(2, 3), dtype=dtype, out=out)

        means = gradients.new_empty(gradients.shape[:2], dtype=dtype)
        return _by_parts(mean, means, gradients, whole=gradients.dtype == dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype

    @staticmethod
    def backward(ctx, grad):
        share = grad / (ctx.shape[2] * ctx.shape[3])
        return share.to(ctx.dtype)[:, :, None, None].expand(ctx.shape), None


class _WeightedSum(torch.autograd.Function):
    """sum_c G_c * A_c for G [B, C, H, W] or [B, C]; the backward writes each gradient once."""

    @staticmethod
    def forward(features, gradients):
        dtype, pooled = accumulation_dtype(features), gradients.dim() == 2
        batch, _, *side = features.shape

        def weighted_sum(part, out):
            factors = features[part].to(dtype).flatten(2), gradients[part].to(dtype)
            if pooled:
                return torch.bmm(factors[1][:, None], factors[0], out=out)
            return torch.sum(factors[0] * factors[1].flatten(2), dim=1, keepdim=True, out=out)

        sums = features.new_empty((batch, 1, math.prod(side)), dtype=dtype)
        return _by_parts(weighted_sum, sums, features, whole=pooled and _flat(features, dtype)).view(batch, *side)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        features, gradients = ctx.saved_tensors
        pooled, grad = gradients.dim() == 2, grad[:, None]
        grad_features = grad_gradients = None
        if ctx.needs_input_grad[0]:
            grad_features = _product(gradients[:, :, None, None] if pooled else gradients, grad, features)
        if ctx.needs_input_grad[1]:
            grad_gradients = (_sum_over_space if pooled else _product)(features, grad, gradients)
        return grad_features, grad_gradients


def _sum_over_space(features, grad, like):
    """Sum over space of features * grad, [B, C], in the dtype of `like`."""

    def product(part, out):
        return torch.bmm(features[part].to(grad.dtype).flatten(2), grad[part].flatten(2).mT, out=out)

    sums = grad.new_empty(*like.shape, 1)
    return _by_parts(product, sums, features, whole=_flat(features, grad.dtype))[:, :, 0].to(like.dtype)


def _product(factor, grad, like):
    """factor * grad in the dtype and memory format of `like`."""

    def product(part, out):
        return torch.mul(factor[part], grad[part], out=out)

    whole = factor.dtype == grad.dtype == like.dtype
    return _by_parts(product, torch.empty_like(like), like, whole).to(like.dtype)


def _flat(features, dtype):
    """Whether matrix products read the features where they lie."""
    dense = features.is_contiguous() or features.is_contiguous(memory_format=torch.channels_last)
    return dense and features.dtype == dtype


def _by_parts(compute, out, features, whole):
    """`out`, where compute(part, out[part]) writes: all at once, or as many samples as a temporary may have.

    Results lie apart from the temporaries of a part, whose place those of the next take. A compiled graph makes none.
    """
    if torch.compiler.is_compiling():
        return compute(slice(None), None)
    batch = features.shape[0]
    step = batch if whole else samples(CHUNK_ELEMENTS, features[0].numel(), features.device)
    for first in range(0, batch, step):
        part = slice(first, first + step)
        compute(part, out[part])
    return out
