"""Stage cam: features, gradients -> heatmaps."""

import torch

from ...options import accumulation_dtype


def cam(features: torch.Tensor, gradients: torch.Tensor, weighting: str) -> torch.Tensor:
    """Heatmaps ReLU(sum_c weight_c * A_c), [B, H, W], float64 for float64 features and float32 otherwise.

    Args:
        features: A, [B, C, H, W].
        gradients: G, [B, C, H, W], or its mean over H and W, [B, C], which then stands for a G constant over space.
        weighting: "gradcam", weight_bc = mean of G_bc over H and W (Grad-CAM, Selvaraju et al. 2017, equation 1);
            "elementwise", weight = G itself (the released code of CGC; HiResCAM, Draelos and Carin 2020).
    """
    dtype = accumulation_dtype(features)
    features, gradients = features.to(dtype), gradients.to(dtype)
    if gradients.dim() == 2:
        gradients = gradients[:, :, None, None]
    weights = gradients.mean(dim=(2, 3), keepdim=True) if weighting == "gradcam" else gradients
    return torch.relu((weights * features).sum(dim=1))
