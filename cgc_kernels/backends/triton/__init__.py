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

from ...ops import Namespace, define
from .. import fused

REMEDY = "pip install triton, or use backend='torch'"


@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    """Why the Triton kernels cannot serve in this installation, with the remedy; None if they can."""
    return _unavailable()


@functools.cache
def _unavailable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return f"triton is not installed; {REMEDY}"
    if interpreted():
        return None
    # Triton compiles its launchers in C, with Python's headers, where the kernels run.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler, gcc or clang or what $CC names; install one, or use backend='torch'"
    if not (_python_headers() / "Python.h").exists():
        return f"triton needs Python's headers, in {_python_headers()}; install python3-dev, or use backend='torch'"
    return None


def _python_headers() -> Path:
    scheme = sysconfig.get_default_scheme()
    return Path(sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme))


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, and so on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _implement(namespace: Namespace) -> None:
    for stage in ("cam", "resample", "contrast", "cgc"):
        for name in (stage, f"{stage}_backward"):
            for device_type in ("cuda", "cpu") if interpreted() else ("cuda",):
                namespace.implement(name, functools.partial(_run, stage, name), device_type)


def _run(stage, name, *arguments):
    return getattr(importlib.import_module(f".kernels.{stage}", __package__), name)(*arguments)


_NAMESPACE = Namespace("cgc_kernels_triton")
_stages = define(_NAMESPACE)
_implement(_NAMESPACE)
cam, resample, contrast, cgc, heatmap_loss = _stages
entry_points = fused.entry_points("triton", _stages)

__all__ = ["cam", "cgc", "contrast", "entry_points", "heatmap_loss", "interpreted", "resample", "unavailable"]
