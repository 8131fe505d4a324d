"""The settings of the loss, named once."""

from typing import NamedTuple

import torch

WEIGHTINGS = ("gradcam", "elementwise")
# Operators and kernels know an objective by its place here, which is that in csrc/common/calls.h.
OBJECTIVES = ("released", "paper", "mse")
RELEASED, PAPER, MSE = range(len(OBJECTIVES))
CONSISTENCY = "consistency"  # the term alone, which backends compute as a multiple of mse

# Pixels of a view each way.
LARGEST_IMAGE = 1 << 16

# Below this sum of the fine map a heatmap is near-dead and its gradient is damped (docs/mathematics.md).
NEAR_DEAD_SUM = 1e-3


class Options(NamedTuple):
    """Validated keyword arguments of :func:`cgc_kernels.cgc_loss`, passed to every backend as one value."""

    image_size: tuple[int, int] | None  # (S_h, S_w), pixels of a view; None until the CAMs have said it
    temperature: float  # tau > 0
    weighting: str  # one of WEIGHTINGS
    objective: str  # one of OBJECTIVES, or CONSISTENCY above the backends
    consistency: float  # weight of mean(1 - positive), >= 0
    eps: float  # > 0


def contrasts(objective: int) -> bool:
    """Whether it has negatives, and so rows and keys for stage contrast; if not it is a mean over the positives."""
    return objective != MSE


def accumulation_dtype(features: torch.Tensor) -> torch.dtype:
    """float64 for float64 features, float32 for float32, bfloat16 and float16."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices that have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
