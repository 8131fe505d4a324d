"""Stage cam: features, gradients -> heatmaps, a few samples at a time: no product as large as the features is kept."""

import torch

from ... import double_backward
from ...options import accumulation_dtype

# Elements of a temporary: large enough to be efficient, small beside a feature tensor.
CHUNK_ELEMENTS = 1 << 20


def cam(features: torch.Tensor, gradients: torch.Tensor, weighting: str) -> torch.Tensor:
    """Heatmaps ReLU(sum_c weight_c * A_c), [B, H, W], float64 for float64 features and float32 otherwise.

    features: A, [B, C, H, W]; gradients: G, [B, C, H, W] or pooled [B, C]; weighting: "gradcam" or "elementwise".
    """
    if weighting == "gradcam" and gradients.dim() == 4:
        gradients = gradients.mean(dim=(2, 3), dtype=accumulation_dtype(features))
    if torch.compiler.is_compiling():
        return _Cam.apply(features, gradients)
    return double_backward.apply(_CamInReverse, features, gradients)


class _Cam(torch.autograd.Function):
    """ReLU(sum_c G_c * A_c) for G [B, C, H, W] or [B, C]; the backward writes each gradient once."""

    @staticmethod
    def forward(features, gradients):
        dtype = accumulation_dtype(features)
        heatmaps = features.new_empty((features.shape[0], *features.shape[2:]), dtype=dtype)
        for part in _chunks(features):
            heatmaps[part] = (features[part].to(dtype) * _over_space(gradients[part], dtype)).sum(dim=1).relu_()
        return heatmaps

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, grad):
        features, gradients, heatmaps = ctx.saved_tensors
        grad = torch.where(heatmaps <= 0, 0.0, grad)[:, None]
        wanted = ctx.needs_input_grad
        grad_features = torch.empty_like(features) if wanted[0] else None
        grad_gradients = torch.empty_like(gradients) if wanted[1] else None
        for part in _chunks(features):
            if wanted[0]:
                grad_features[part] = _over_space(gradients[part], grad.dtype) * grad[part]
            if wanted[1]:
                product = features[part].to(grad.dtype) * grad[part]
                grad_gradients[part] = product.sum(dim=(2, 3)) if gradients.dim() == 2 else product
        return grad_features, grad_gradients


class _CamInReverse(_Cam):
    """Refuses forward mode by name; Dynamo does not trace functions that have one."""

    @staticmethod
    def jvp(ctx, *tangents):
        raise RuntimeError(
            "backend='torch' must be differentiated in reverse mode, got a forward-mode tangent; "
            "use backend='reference'"
        )


def _over_space(gradients: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    gradients = gradients.to(dtype)
    return gradients[:, :, None, None] if gradients.dim() == 2 else gradients


def _chunks(features: torch.Tensor) -> list[slice]:
    """Slices of the batch; a compiled graph fuses the product away and takes the batch whole."""
    batch = features.shape[0]
    if torch.compiler.is_compiling():
        return [slice(0, batch)]
    step = max(1, CHUNK_ELEMENTS // features[0].numel())
    return [slice(start, start + step) for start in range(0, batch, step)]
