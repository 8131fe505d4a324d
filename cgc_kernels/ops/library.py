"""Operator namespaces, and the compiled kernels where they were built."""

import json
import platform
from pathlib import Path

import torch

from .. import double_backward
from .._version import __version__

REMEDY = "install a C++17 compiler and run: CGC_CPP=1 pip install --no-build-isolation --force-reinstall --no-deps ."

_FOLDER = Path(__file__).parent.parent


class Namespace:
    """Operators without kernels; these come from a compiled library or from :meth:`implement`."""

    def __init__(self, name: str):
        self.name = name
        self._library = torch.library.Library(name, "FRAGMENT")

    def define(self, name: str, schema: str, fake, setup_context=None, backward=double_backward.refuse):
        """Define operator `name`: its schema, its fake kernel and its autograd formula; returns the operator."""
        self._library.define(f"{name}{schema}")
        qualified = f"{self.name}::{name}"
        torch.library.register_fake(qualified, fake)
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
        return getattr(getattr(torch.ops, self.name), name).default

    def define_plain(self, schema: str) -> None:
        """Define an operator that takes no tensor."""
        self._library.define(schema)

    def implement(self, name: str, kernel, device_type: str) -> None:
        """Make a Python function the kernel of operator `name` on one type of device."""
        self._library.impl(name, kernel, device_type.upper())


def _load() -> str | None:
    """Load the compiled library; returns why there is none, or None."""
    library = _FOLDER / "_cpu.so"
    if not library.exists():
        return f"the C++ kernels were not built ({_build_reason()})"
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return f"the C++ kernels in {library.name} do not load under torch {torch.__version__}: {error}"
    return None


def _build_reason() -> str:
    try:
        return json.loads((_FOLDER / "_build.json").read_text())["reason"]
    except (OSError, ValueError, KeyError):
        return "cgc_kernels runs from a source tree that was never installed"


def unavailable() -> str | None:
    """Why the compiled CPU kernels cannot serve, with the remedy; None if they can."""
    return None if _failure is None else f"{_failure}; {REMEDY}"


def processor() -> dict:
    """Instruction set chosen for the C++ kernels and the number of threads they use; empty without them."""
    if _failure is not None:
        return {}
    return {"instruction_set": torch.ops.cgc_kernels.instruction_set(), "threads": torch.get_num_threads()}


def versions() -> dict:
    """Versions of cgc_kernels, torch and Python, and the machine's architecture."""
    return {
        "cgc_kernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


COMPILED = Namespace("cgc_kernels")
COMPILED.define_plain("instruction_set() -> str")
_failure = _load()
