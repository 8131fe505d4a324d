"""What a backend is: the stages of the loss as functions, and what it can serve."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import device as Device

# Cells of a heatmap each way that the GPU kernels take; in csrc/cuda/platform.cuh, too.
LARGEST_SIDE = 32


def _nothing(index: int | None) -> str | None:
    return None


@dataclass(frozen=True, eq=False)
class Backend:
    """One implementation of the loss.

    Every stage runs outside autocast and is differentiable once; a double backward through it is refused.

    Attributes:
        name: as `backend=` spells it.
        cam: (features, gradients, weighting) -> heatmaps [B, H, W].
        resample: (heatmaps, aug_heatmaps, transform, image_size, eps, objective) -> rows [B, N], keys [B, N],
            positives [B].
        contrast: (rows, keys, positives, temperature) -> scalar.
        heatmap_loss: (heatmaps, aug_heatmaps, transform, options) -> scalar.
        cgc: (features, gradients, aug_features, aug_gradients, transform, options) -> scalar.
        row_losses: stage contrast of `count` samples from `first` on, against all: (rows, keys, positives, first,
            count, temperature) -> [count], not differentiable. None: it contrasts all samples or none.
        row_gradients: (grad_loss, rows, keys, positives, row_losses of all, first, count, temperature) -> gradients of
            the mean of all row losses with respect to the rows, keys and positives of those samples.
        device_types: of the devices whose tensors it takes; None: any.
        largest_side: cells of a heatmap each way that it takes; None: any.
        missing: (index of a CUDA device, or None for the current one) -> why this installation cannot serve it, with
            the remedy, or None.
    """

    name: str
    cam: Callable
    resample: Callable
    contrast: Callable
    heatmap_loss: Callable
    cgc: Callable
    row_losses: Callable | None = None
    row_gradients: Callable | None = None
    device_types: tuple[str, ...] | None = None
    largest_side: int | None = None
    missing: Callable[[int | None], str | None] = _nothing

    def obstacle(self, device: Device, side: int = 1) -> str | None:
        """Why it cannot serve tensors on `device` with heatmaps of `side` cells each way, with the remedy, or None."""
        reason = self.missing(device.index)
        if reason is not None:
            return reason
        if self.device_types is not None and device.type not in self.device_types:
            needed = " or ".join(kind.upper() for kind in self.device_types)
            return f"it needs {needed} tensors, got tensors on {device}; use backend='auto' or move them"
        if self.largest_side is not None and side > self.largest_side:
            return f"its maps are at most {self.largest_side} cells each way, got {side}; use backend='torch'"
        return None
