"""Stage cam: features, gradients -> heatmaps; what needs a temporary works on a few samples at a time."""

import torch

from ...options import accumulation_dtype
from .chunks import samples
from .function import apply

# Elements of a temporary: large enough to be efficient, small beside a feature tensor.
CHUNK_ELEMENTS = 1 << 21


def cam(features: torch.Tensor, gradients: torch.Tensor, weighting: str) -> torch.Tensor:
    """Heatmaps ReLU(sum_c weight_c * A_c), [B, H, W], float64 for float64 features and float32 otherwise.

    features: A, [B, C, H, W]; gradients: G, [B, C, H, W] or pooled [B, C]; weighting: "gradcam" or "elementwise".
    Sums with a weight for each channel are matrix products, of float32 as exact as torch's matmul precision says.
    """
    if weighting == "gradcam" and gradients.dim() == 4:
        gradients = apply(_Mean, gradients, accumulation_dtype(features))
    return torch.relu(apply(_WeightedSum, features, gradients))


class _Mean(torch.autograd.Function):
    """Mean of G [B, C, H, W] over space, in `dtype`; its gradient is constant over space: expanded with stride 0."""

    @staticmethod
    def forward(gradients, dtype):
        parts = _parts(gradients, whole=gradients.dtype == dtype)
        return _join([gradients[part].mean(dim=(2, 3), dtype=dtype) for part in parts])

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
        dtype = accumulation_dtype(features)
        whole = gradients.dim() == 2 and _flat(features, dtype)
        return _join([_weighted_sum(features[p], gradients[p], dtype) for p in _parts(features, whole)])

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


def _weighted_sum(features, gradients, dtype):
    features, gradients = features.to(dtype), gradients.to(dtype)
    if gradients.dim() == 4:
        return (features * gradients).sum(dim=1)
    return torch.bmm(gradients[:, None], features.flatten(2)).view(len(features), *features.shape[2:])


def _sum_over_space(features, grad, like):
    """Sum over space of features * grad, [B, C], in the dtype of `like`."""
    parts = _parts(features, whole=_flat(features, grad.dtype))
    sums = [torch.bmm(features[p].to(grad.dtype).flatten(2), grad[p].flatten(2).mT) for p in parts]
    return _join(sums)[:, :, 0].to(like.dtype)


def _product(factor, grad, like):
    """factor * grad in the dtype and memory format of `like`."""
    if torch.compiler.is_compiling():
        return (factor * grad).to(like.dtype)
    out = torch.empty_like(like)
    for part in _parts(like, whole=factor.dtype == grad.dtype == like.dtype):
        torch.mul(factor[part], grad[part], out=out[part])
    return out


def _flat(features, dtype):
    """Whether matrix products read the features where they lie."""
    dense = features.is_contiguous() or features.is_contiguous(memory_format=torch.channels_last)
    return dense and features.dtype == dtype


def _parts(features, whole):
    """Slices of the batch: all of it, or as many samples as a temporary may have; a compiled graph makes none."""
    if whole or torch.compiler.is_compiling():
        return [slice(None)]
    step = samples(CHUNK_ELEMENTS, features[0].numel(), features.device)
    return [slice(start, start + step) for start in range(0, len(features), step)]


def _join(parts):
    return parts[0] if len(parts) == 1 else torch.cat(parts)
