"""Stage cam: features, gradients -> heatmaps."""

import functools

import torch

from ..double_backward import DependingOn
from ..options import accumulation_dtype
from .library import Namespace


def define(namespace: Namespace):
    """Define the stage's operators; returns the stage as a function."""
    backward = namespace.define("cam_backward", _BACKWARD_SCHEMA, _fake_backward)
    return functools.partial(
        cam, namespace.define("cam", _SCHEMA, fake_cam, _setup_context, functools.partial(_backward, backward))
    )


def cam(operator, features: torch.Tensor, gradients: torch.Tensor, weighting: str) -> torch.Tensor:
    """Heatmaps ReLU(sum_c weight_c * A_c), [B, H, W]; features and gradients are each read once.

    features: A, [B, C, H, W]; gradients: G, [B, C, H, W] or pooled [B, C]; weighting: "gradcam" or "elementwise".
    """
    features, gradients = prepare(features, gradients, weighting)
    return operator(features, gradients, weighting == "elementwise")[0]


def prepare(features: torch.Tensor, gradients: torch.Tensor, weighting: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The two as the kernels read them: contiguous or channels_last without a copy, other strides copied."""
    if pools(gradients, weighting == "elementwise") and gradients.requires_grad and not torch.compiler.is_compiling():
        # The backward gets pooled weights instead of the gradients: a double backward must find these all the same.
        features = DependingOn.apply(features, gradients)
    last = not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    if features.dtype == torch.float64:
        gradients = gradients.double()
    gradients = gradients.contiguous(memory_format=layout if gradients.dim() == 4 else torch.contiguous_format)
    return features.contiguous(memory_format=layout), gradients


def pools(gradients: torch.Tensor, elementwise: bool) -> bool:
    """Whether the kernel averages the gradients over space itself, and so saves [B, C] weights for the backward."""
    return gradients.dim() == 4 and not elementwise


def spread(grad_weights: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Gradient of a mean over space: the same number at every position, expanded with stride 0."""
    share = grad_weights.div_(shape[2] * shape[3]).to(dtype)  # in place: nobody else holds it
    return share[:, :, None, None].expand(shape)


def fake_cam(features, gradients, elementwise):
    batch, channels, height, width = features.shape
    dtype = accumulation_dtype(features)
    shape = (batch, channels) if pools(gradients, elementwise) else (0,)
    return features.new_empty((batch, height, width), dtype=dtype), features.new_empty(shape, dtype=dtype)


def _fake_backward(grad_heatmaps, heatmaps, features, gradients, need_features, need_gradients):
    return wanted(features, need_features), wanted(gradients, need_gradients)


def wanted(tensor: torch.Tensor, needed: bool) -> torch.Tensor:
    """An uninitialised gradient for `tensor`, or an empty tensor where none is asked for."""
    return torch.empty_like(tensor) if needed else tensor.new_empty(0)


def _setup_context(ctx, inputs, output):
    features, gradients, elementwise = inputs
    heatmaps, weights = output
    ctx.mark_non_differentiable(weights)
    ctx.gradients = (gradients.shape, gradients.dtype) if pools(gradients, elementwise) else None
    ctx.save_for_backward(heatmaps, features, weights if ctx.gradients else gradients)


def _backward(operator, ctx, grad_heatmaps, _):
    need_features, need_gradients, _ = ctx.needs_input_grad
    grads = operator(grad_heatmaps.contiguous(), *ctx.saved_tensors, need_features, need_gradients)
    grad_gradients = spread(grads[1], *ctx.gradients) if need_gradients and ctx.gradients else grads[1]
    return grads[0] if need_features else None, grad_gradients if need_gradients else None, None


_SCHEMA = "(Tensor features, Tensor gradients, bool elementwise) -> (Tensor heatmaps, Tensor weights)"
_BACKWARD_SCHEMA = (
    "(Tensor grad_heatmaps, Tensor heatmaps, Tensor features, Tensor gradients, bool need_features, "
    "bool need_gradients) -> (Tensor grad_features, Tensor grad_gradients)"
)
