"""Stage cam: features, gradients -> heatmaps."""

import torch

from ..double_backward import DependingOn
from ..options import accumulation_dtype
from .library import StageOperators


def cam(run, features: torch.Tensor, gradients: torch.Tensor, weighting: str) -> torch.Tensor:
    """Heatmaps ReLU(sum_c weight_c * A_c), [B, H, W]; features and gradients are each read once.

    features: A, [B, C, H, W]; gradients: G, [B, C, H, W] or pooled [B, C]; weighting: "gradcam" or "elementwise".
    """
    elementwise = weighting == "elementwise"
    return run(*prepare(features, gradients, elementwise), elementwise)


def prepare(features: torch.Tensor, gradients: torch.Tensor, elementwise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The two as the kernels read them: contiguous or channels_last without a copy, other strides copied."""
    if pools(gradients, elementwise) and gradients.requires_grad and not torch.compiler.is_compiling():
        # The backward gets pooled weights instead of the gradients: a double backward must find these all the same.
        features = DependingOn.apply(features, gradients)
    if features.dtype == torch.float64:
        gradients = gradients.double()
    if not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last):
        last = gradients.dim() == 4
        return features, gradients.contiguous(memory_format=torch.channels_last) if last else gradients.contiguous()
    return features.contiguous(), gradients.contiguous()


def pools(gradients: torch.Tensor, elementwise: bool) -> bool:
    """Whether the kernel averages the gradients over space itself, and so saves [B, C] weights for the backward."""
    return not elementwise and gradients.dim() == 4


def spread(grad_weights: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Gradient of a mean over space: the same number at every position, expanded with stride 0."""
    share = grad_weights.div_(shape[2] * shape[3]).to(dtype)  # in place: nobody else holds it
    return share[:, :, None, None].expand(shape)


def wanted(tensor: torch.Tensor, needed: bool) -> torch.Tensor:
    """An uninitialised gradient for `tensor`, or an empty tensor where none is asked for."""
    return torch.empty_like(tensor) if needed else tensor.new_empty(0)


def _fake(features, gradients, elementwise):
    batch, channels, height, width = features.shape
    dtype = accumulation_dtype(features)
    shape = (batch, channels) if pools(gradients, elementwise) else (0,)
    return features.new_empty((batch, height, width), dtype=dtype), features.new_empty(shape, dtype=dtype)


def _fake_backward(grad_heatmaps, heatmaps, features, gradients, need_features, need_gradients):
    return wanted(features, need_features), wanted(gradients, need_gradients)


def _setup_context(ctx, inputs, output):
    features, gradients, elementwise = inputs
    heatmaps, weights = output
    ctx.pooled = (gradients.shape, gradients.dtype) if pools(gradients, elementwise) else None
    ctx.save_for_backward(heatmaps, features, weights if ctx.pooled else gradients)


def _backward(operator, ctx, saved, grad_heatmaps):
    need_features, need_gradients = ctx.needs_input_grad[:2]
    grads = operator(grad_heatmaps.contiguous(), *saved, need_features, need_gradients)
    grad_gradients = spread(grads[1], *ctx.pooled) if need_gradients and ctx.pooled else grads[1]
    return grads[0] if need_features else None, grad_gradients if need_gradients else None


OPERATORS = StageOperators(
    "cam",
    "(Tensor features, Tensor gradients, bool elementwise) -> (Tensor heatmaps, Tensor weights)",
    _fake,
    "(Tensor grad_heatmaps, Tensor heatmaps, Tensor features, Tensor gradients, bool need_features, "
    "bool need_gradients) -> (Tensor grad_features, Tensor grad_gradients)",
    _fake_backward,
    _setup_context,
    _backward,
)
