"""torch.library operators of the kernels, one file per stage, defined once and given to every fused backend.

Schema, fake kernel and autograd are defined here in Python and exist without any kernel: the compiled libraries add
theirs for the CPU and for CUDA to the namespace cgc_kernels, Triton's are in cgc_kernels_triton. What a backward needs
beside the inputs is an extra output of its forward, without a gradient.
"""

import functools
from typing import NamedTuple

from .. import chain
from . import cam, cgc, contrast, resample
from .installation import COMPILED
from .library import Namespace


class BackendFunctions(NamedTuple):
    """What a Backend takes of one namespace: the stages, two of them for given heatmaps, all fused, and for ranks."""

    cam: functools.partial
    resample: functools.partial
    contrast: functools.partial
    heatmap_loss: functools.partial
    cgc: functools.partial
    row_losses: functools.partial
    row_gradients: functools.partial


def backend_functions(namespace: Namespace) -> BackendFunctions:
    """Define the operators of every stage in `namespace`; the functions that call them."""
    run = {module.OPERATORS.name: namespace.define(module.OPERATORS) for module in (cam, resample, contrast, cgc)}
    resampled = functools.partial(resample.resample, run["resample"])
    contrasted = functools.partial(contrast.contrast, run["contrast"])
    return BackendFunctions(
        cam=functools.partial(cam.cam, run["cam"]),
        resample=resampled,
        contrast=contrasted,
        heatmap_loss=functools.partial(chain.heatmap_loss, resampled, contrasted),
        cgc=functools.partial(cgc.cgc, run["cgc"]),
        row_losses=functools.partial(contrast.row_losses, namespace.operators),
        row_gradients=functools.partial(contrast.row_gradients, namespace.operators),
    )


compiled = backend_functions(COMPILED)

__all__ = ["BackendFunctions", "Namespace", "backend_functions", "compiled"]
