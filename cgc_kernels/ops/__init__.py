"""torch.library operators of the kernels, one file per stage, defined once and given to every fused backend.

Schema, fake kernel and autograd are defined here in Python and exist without any kernel: the compiled libraries add
theirs for the CPU and for CUDA to the namespace cgc_kernels, Triton's are in cgc_kernels_triton. What a backward needs
beside the inputs is an extra output of its forward, without a gradient.
"""

import functools
from typing import NamedTuple

from .. import chain
from . import cam, cgc, contrast, resample
from .library import COMPILED, Namespace, architectures, processor, unavailable, versions


class Stages(NamedTuple):
    """The stages of one namespace, their chain for heatmaps from anywhere, the three fused, and what ranks share."""

    cam: functools.partial
    resample: functools.partial
    contrast: functools.partial
    heatmap_loss: functools.partial
    cgc: functools.partial
    row_losses: functools.partial
    row_gradients: functools.partial


def define(namespace: Namespace) -> Stages:
    """Define the operators of every stage in `namespace`."""
    functions = {"cam": cam.cam, "resample": resample.resample, "contrast": contrast.contrast, "cgc": cgc.cgc}
    stages = {
        module.STAGE.name: functools.partial(functions[module.STAGE.name], namespace.define(module.STAGE))
        for module in (cam, resample, contrast, cgc)
    }
    return Stages(
        **stages,
        heatmap_loss=functools.partial(chain.heatmap_loss, stages["resample"], stages["contrast"]),
        row_losses=functools.partial(contrast.row_losses, namespace.operators),
        row_gradients=functools.partial(contrast.row_gradients, namespace.operators),
    )


compiled = define(COMPILED)

__all__ = ["Namespace", "Stages", "architectures", "compiled", "define", "processor", "unavailable", "versions"]
