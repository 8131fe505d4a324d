"""The loss as exact H x W algebra in plain PyTorch: the fallback that runs on any device."""

import functools

from ... import chain
from ..plain import plain_backend
from .cam import cam
from .contrast import contrast, gradients, row_losses
from .resample import resample

_heatmap_loss = functools.partial(chain.heatmap_loss, resample, contrast)

_cgc = functools.partial(chain.cgc, cam, _heatmap_loss)

BACKEND = plain_backend(
    "torch", cam, resample, contrast, _heatmap_loss, _cgc, row_losses=row_losses, row_gradients=gradients
)
