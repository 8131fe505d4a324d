"""What the backends made of operators share: their entry points, which refuse what an operator would get wrong."""

import functools

import torch
from torch.autograd import forward_ad

from ..ops import Stages


def entry_points(name: str, stages: Stages) -> dict:
    """The public functions' entries into backend `name`."""
    return {entry: _reverse_mode_only(name, getattr(stages, entry)) for entry in ("cam", "heatmap_loss", "cgc")}


def _reverse_mode_only(name, function):
    """Refuse tensors with a forward-mode tangent: operators without a formula for it would drop it silently."""

    @functools.wraps(function)
    def guarded(*args):
        if not torch.compiler.is_compiling():
            for value in args:
                if isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None:
                    raise RuntimeError(
                        f"backend {name!r} must be differentiated in reverse mode, got a forward-mode tangent; "
                        "use backend='reference'"
                    )
        return function(*args)

    return guarded
