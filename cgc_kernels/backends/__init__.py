"""The one place that chooses a backend.

A backend is a package with the stages cam, resample and contrast, the chains heatmap_loss and cgc, and `entry_points`,
the three of them that the public functions call.
"""

from types import ModuleType

from torch import device as Device

from .. import ops
from . import cpp, cuda, reference, torch, triton

BACKENDS = ("auto", "cuda", "triton", "cpp", "torch", "reference")

# Cells of a heatmap each way that the GPU kernels take: csrc/cuda/platform.cuh, triton/kernels/launch.py.
LARGEST_SIDE = 32

_MODULES = {"cuda": cuda, "triton": triton, "cpp": cpp, "torch": torch, "reference": reference}
_AUTO_ORDER = {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")}


def unavailable(name: str, index: int | None = None) -> str | None:
    """Why backend `name` cannot serve in this installation, with the remedy; None if it can.

    index: of the CUDA device that it is to serve, None for the current one.
    """
    if name == "cuda":
        return ops.unavailable(name) or cuda.unfit(index)
    if name == "cpp":
        return ops.unavailable(name)
    return triton.unavailable() if name == "triton" else None


def choose(name: str, device: Device, side: int = 1) -> ModuleType:
    """The module that serves backend `name` for tensors on `device`, with heatmaps of at most `side` cells each way.

    "auto" takes the first available of cpp, torch on the CPU and of cuda, triton, torch on a GPU; "reference" is never
    chosen by itself. An explicit request that cannot be served raises RuntimeError with the reason and the remedy.
    """
    if name == "auto":
        name = _automatic(device, side)
    reason = _obstacle(name, device, side)
    if reason is not None:
        raise RuntimeError(f"backend must be one that can serve this call, got {name!r}: {reason}")
    return _MODULES[name]


def _automatic(device: Device, side: int) -> str:
    """The backend that "auto" takes."""
    order = _AUTO_ORDER.get(device.type, ("torch",))
    return next(candidate for candidate in order if _obstacle(candidate, device, side) is None)


def _obstacle(name: str, device: Device, side: int) -> str | None:
    """Why backend `name` cannot serve such a call, with the remedy; None if it can."""
    reason = unavailable(name, device.index)
    if reason is None and device.type not in _device_types(name, device):
        needed = " or ".join(kind.upper() for kind in _device_types(name, device))
        reason = f"it needs {needed} tensors, got tensors on {device}; use backend='auto' or move them"
    if reason is None and name in ("cuda", "triton") and side > LARGEST_SIDE:
        reason = f"its maps are at most {LARGEST_SIDE} cells each way, got {side}; use backend='torch'"
    return reason


def _device_types(name: str, device: Device) -> tuple[str, ...]:
    """Types of devices whose tensors a backend takes; the plain ones take any."""
    if name == "triton":
        return ("cuda", "cpu") if triton.interpreted() else ("cuda",)
    return {"cuda": ("cuda",), "cpp": ("cpu",)}.get(name, (device.type,))


def info() -> dict:
    """What is installed, what "auto" would choose, and why a backend is missing.

    Returns a dict with "versions" (cgc_kernels, torch, python), "auto" ({"cpu": name, "cuda": name}), "backends"
    ({name: {"available": bool, "reason": str}}) and "cpp" (instruction set and threads of the C++ kernels).

    Example::

        >>> from cgc_kernels import info
        >>> info()["backends"]["torch"]["available"]
        True
    """
    names = BACKENDS[1:]
    return {
        "versions": ops.versions(),
        "auto": {device: _automatic(Device(device), side=1) for device in _AUTO_ORDER},
        "backends": {
            name: {"available": unavailable(name) is None, "reason": unavailable(name) or ""} for name in names
        },
        "cpp": ops.processor(),
    }
