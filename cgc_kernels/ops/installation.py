"""What was installed of the compiled libraries: whether they load, why not, and what they were built for."""

import json
import platform
from pathlib import Path

import torch

from .._version import __version__
from .library import Namespace

_INSTALL = "pip install --no-build-isolation --force-reinstall --no-deps ."
_REMEDIES = {
    "cpp": f"install a C++17 compiler and run: CGC_CPP=1 {_INSTALL}",
    "cuda": f"install a CUDA toolkit of torch's own major version and run: CGC_CUDA=1 {_INSTALL}",
}
_LIBRARIES = {"cpp": "_cpu.so", "cuda": "_cuda.so"}

_PACKAGE = Path(__file__).parent.parent

# The operators that the libraries implement, declared before they are loaded.
COMPILED = Namespace("cgc_kernels")
_instruction_set = COMPILED.declare("instruction_set", "() -> str")


def _load(name: str) -> str | None:
    """Load a compiled library, "cpp" or "cuda"; returns why there is none, or None."""
    library = _PACKAGE / _LIBRARIES[name]
    kernels = {"cpp": "the C++ kernels", "cuda": "the CUDA kernels"}[name]
    if name == "cuda" and torch.version.cuda is None:
        return f"the installed torch {torch.__version__} is built without CUDA"
    if not library.exists():
        return f"{kernels} were not built ({_build_reason(name)})"
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return f"{kernels} in {library.name} do not load under torch {torch.__version__}: {error}"
    return None


def _build_record(name: str, key: str, default):
    try:
        return json.loads((_PACKAGE / "_build.json").read_text())[name][key]
    except (OSError, ValueError, KeyError, TypeError):
        return default


def _build_reason(name: str) -> str:
    return _build_record(name, "reason", "cgc_kernels runs from a source tree that was never installed")


def architectures() -> list[str]:
    """What the CUDA kernels were built for, as "9.0" or "12.0+PTX"; empty if that is not known."""
    return _build_record("cuda", "architectures", [])


def unavailable(name: str) -> str | None:
    """Why the compiled kernels "cpp" or "cuda" cannot serve, with the remedy; None if they can."""
    failure = _failures[name]
    return None if failure is None else f"{failure}; {_REMEDIES[name]}, or use backend='auto'"


def processor() -> dict:
    """Instruction set chosen for the C++ kernels and the number of threads they use; empty without them."""
    if _failures["cpp"] is not None:
        return {}
    return {"instruction_set": _instruction_set(), "threads": torch.get_num_threads()}


def versions() -> dict:
    """Versions of cgc_kernels, torch and Python, and the machine's architecture."""
    return {
        "cgc_kernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


_failures = {name: _load(name) for name in _LIBRARIES}
