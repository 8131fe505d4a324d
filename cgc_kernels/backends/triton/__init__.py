"""The loss as Triton kernels, compiled at their first use: for a GPU whose owner has no CUDA toolkit.

Registered as operators of their own namespace, with the schemas, fakes and autograd of :mod:`cgc_kernels.ops`. Triton
is imported when a kernel first runs. With TRITON_INTERPRET=1 the kernels run on CPU tensors, in Triton's interpreter.
"""

import functools
import importlib
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from ...ops import Namespace, backend_functions
from ...tracing import constant_result
from ..backend import LARGEST_SIDE, Backend

REMEDY = "pip install triton, or use backend='auto'"


@constant_result
def missing(index: int | None) -> str | None:
    """Why the Triton kernels cannot serve in this installation, with the remedy; None if they can."""
    return _found()


@functools.cache
def _found() -> str | None:
    return requirement()


def requirement() -> str | None:
    """What the kernels need and this machine lacks, with the remedy; None if it has all."""
    if importlib.util.find_spec("triton") is None:
        return f"triton is not installed; {REMEDY}"
    if interpreted():
        return None
    # Triton compiles its launchers in C, with Python's headers, where the kernels run.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler, gcc or clang or what $CC names; install one, or use backend='auto'"
    if not (python_headers() / "Python.h").exists():
        return f"triton needs Python's headers, in {python_headers()}; install python3-dev, or use backend='auto'"
    return None


def python_headers() -> Path:
    """The folder that holds Python.h."""
    scheme = sysconfig.get_default_scheme()
    return Path(sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme))


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, and so on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


_DEVICE_TYPES = ("cuda", "cpu") if interpreted() else ("cuda",)


def _implement(namespace: Namespace) -> None:
    for stage in ("cam", "resample", "contrast", "cgc"):
        for name in (stage, f"{stage}_backward"):
            for device_type in _DEVICE_TYPES:
                namespace.implement(name, functools.partial(_run, stage, name), device_type)


def _run(stage, name, first, *arguments):
    """Run what a stage's file launches, on the device and the current stream of the first tensor."""
    if first.is_cuda and first.get_device() != torch.cuda.current_device():
        with torch.cuda.device(first.device):
            return _kernel(stage, name)(first, *arguments)
    return _kernel(stage, name)(first, *arguments)


@functools.cache
def _kernel(stage, name):
    return getattr(importlib.import_module(f".kernels.{stage}", __package__), name)


_NAMESPACE = Namespace("cgc_kernels_triton")
_FUNCTIONS = backend_functions(_NAMESPACE)
_implement(_NAMESPACE)
BACKEND = Backend(
    "triton", **_FUNCTIONS._asdict(), device_types=_DEVICE_TYPES, largest_side=LARGEST_SIDE, missing=missing
)
