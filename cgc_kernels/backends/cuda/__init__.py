"""The loss as one CUDA kernel each way (csrc/cuda), through the operators of :mod:`cgc_kernels.ops`.

The same operators as the C++ backend's: a tensor's device says whose kernels run.
"""

import functools
import re

import torch

from ...ops import architectures, compiled
from .. import fused

cam, resample, contrast, heatmap_loss, cgc = compiled
entry_points = fused.entry_points("cuda", compiled)


@torch.compiler.assume_constant_result
def unfit(index: int | None) -> str | None:
    """Why the kernels do not run on CUDA device `index` (None: the current one), with the remedy; None if they do."""
    if not torch.cuda.is_available():
        return None
    return _unfit(torch.cuda.current_device() if index is None else index)


@functools.cache
def _unfit(index: int) -> str | None:
    capability, built = torch.cuda.get_device_capability(index), architectures()
    if not built or any(_serves(architecture, capability) for architecture in built):
        return None
    found = "{}.{}".format(*capability)
    remedy = f"build them with CGC_CUDA_ARCH={found}" if capability >= (8, 0) else "they need 8.0 or later"
    return (
        f"its kernels were built for compute capability {', '.join(built)}, cuda:{index} has {found}; {remedy}, "
        "or use backend='auto'"
    )


def _serves(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture, as setup.py records it, runs on a device of that compute capability."""
    major, minor, specific, ptx = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", architecture).groups()
    built = int(major), int(minor)
    if specific == "a":
        return built == capability
    return (built[0] == capability[0] and built[1] <= capability[1]) or (ptx is not None and built <= capability)


__all__ = ["cam", "cgc", "contrast", "entry_points", "heatmap_loss", "resample", "unfit"]
