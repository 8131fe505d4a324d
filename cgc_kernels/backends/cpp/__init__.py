"""The loss as fused C++ kernels on the CPU (csrc/cpu), through the operators of :mod:`cgc_kernels.ops`."""

import functools

import torch
from torch.autograd import forward_ad

from ...ops import cam, cgc, contrast, heatmap_loss, resample


def _reverse_mode_only(function):
    """Refuse tensors with a forward-mode tangent: operators without a formula for it would drop it silently."""

    @functools.wraps(function)
    def guarded(*args):
        if not torch.compiler.is_compiling():
            for value in args:
                if isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None:
                    raise RuntimeError(
                        "backend 'cpp' must be differentiated in reverse mode, got a forward-mode tangent; "
                        "use backend='reference'"
                    )
        return function(*args)

    return guarded


entry_points = {
    "cam": _reverse_mode_only(cam),
    "heatmap_loss": _reverse_mode_only(heatmap_loss),
    "cgc": _reverse_mode_only(cgc),
}

__all__ = ["cam", "cgc", "contrast", "entry_points", "heatmap_loss", "resample"]
