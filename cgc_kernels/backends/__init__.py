"""The backends, and the one place that chooses among them."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import device as Device
from torch.compiler import is_compiling

from ..ops import installation
from .backend import Backend
from .cpp import BACKEND as _CPP
from .cuda import BACKEND as _CUDA
from .reference import BACKEND as _REFERENCE
from .torch import BACKEND as _TORCH
from .triton import BACKEND as _TRITON

_REGISTRY = {backend.name: backend for backend in (_CUDA, _TRITON, _CPP, _TORCH, _REFERENCE)}
_AUTO_ORDER = {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")}

BACKENDS = ("auto", *_REGISTRY)


def named(name: str) -> Backend:
    """The backend of that name, whether it can serve or not."""
    return _REGISTRY[name]


@contextlib.contextmanager
def serving(*backends: Backend) -> Iterator[None]:
    """Within it, each of `backends` is the one of its name: for tests, and for kernels that are tried out."""
    before = dict(_REGISTRY)
    _replace(before | {backend.name: backend for backend in backends})
    try:
        yield
    finally:
        _replace(before)


def _replace(registry: dict[str, Backend]) -> None:
    _REGISTRY.clear()
    _REGISTRY.update(registry)
    _known_choice.cache_clear()


def unavailable(name: str, index: int | None = None) -> str | None:
    """Why backend `name` cannot serve in this installation, with the remedy; None if it can.

    index: of the CUDA device that it is to serve, None for the current one.
    """
    return _REGISTRY[name].missing(index)


def choose(name: str, device: Device, side: int = 1) -> Backend:
    """The backend `name` for tensors on `device`, with heatmaps of at most `side` cells each way.

    "auto" takes the first available of cpp, torch on the CPU and of cuda, triton, torch on a GPU; "reference" is never
    chosen by itself. An explicit request that cannot be served raises RuntimeError with the reason and the remedy.
    """
    lasting = device.index is not None or device.type == "cpu"  # the current GPU may be another one next time
    lasting = lasting and isinstance(side, int)  # a traced one is a symbol
    return _known_choice(name, device, side) if lasting and not is_compiling() else _choose(name, device, side)


def _choose(name: str, device: Device, side: int) -> Backend:
    if name == "auto":
        return _automatic(device, side)
    backend = _REGISTRY[name]
    reason = backend.obstacle(device, side)
    if reason is not None:
        raise RuntimeError(f"backend must be one that can serve this call, got {name!r}: {reason}")
    return backend


_known_choice = functools.lru_cache(maxsize=256)(_choose)  # the same at every step


def _automatic(device: Device, side: int) -> Backend:
    """The backend that "auto" takes."""
    order = _AUTO_ORDER.get(device.type, ("torch",))
    return next(_REGISTRY[name] for name in order if _REGISTRY[name].obstacle(device, side) is None)


def info() -> dict[str, Any]:
    """What is installed, what "auto" would choose, and why a backend is missing.

    Returns a dict with "versions" (cgc_kernels, torch, python), "auto" ({"cpu": name, "cuda": name}), "backends"
    ({name: {"available": bool, "reason": str}}) and "cpp" (instruction set and threads of the C++ kernels).

    Example::

        >>> from cgc_kernels import info
        >>> info()["backends"]["torch"]["available"]
        True
    """
    reasons = {name: unavailable(name) for name in _REGISTRY}
    return {
        "versions": installation.versions(),
        "auto": {device: _automatic(Device(device), side=1).name for device in _AUTO_ORDER},
        "backends": {name: {"available": reason is None, "reason": reason or ""} for name, reason in reasons.items()},
        "cpp": installation.processor() if reasons["cpp"] is None else {},
    }
