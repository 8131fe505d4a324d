"""The loss as CUDA kernels (csrc/cuda), through the operators of :mod:`cgc_kernels.ops`.

The same operators as the C++ backend's: a tensor's device says whose kernels run.
"""

import functools
import re

import torch

from ... import ops
from ...ops import installation
from ...tracing import constant_result
from ..backend import LARGEST_SIDE, Backend


@constant_result
def missing(index: int | None) -> str | None:
    """Why the kernels cannot serve CUDA device `index` (None: the current one), with the remedy; None if they can."""
    reason = installation.unavailable("cuda")
    if reason is None and index is None and torch.cuda.is_available():
        index = torch.cuda.current_device()
    return reason if reason is not None or index is None else _unfit(index)


@functools.cache
def _unfit(index: int) -> str | None:
    if not torch.cuda.is_available():
        return None
    return unfit(index, torch.cuda.get_device_capability(index), installation.architectures())


def unfit(index: int, capability: tuple[int, int], built: list[str]) -> str | None:
    """Why kernels built for some architectures do not run on device `index` of a capability; None if they do."""
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


BACKEND = Backend("cuda", **ops.compiled._asdict(), device_types=("cuda",), largest_side=LARGEST_SIDE, missing=missing)
