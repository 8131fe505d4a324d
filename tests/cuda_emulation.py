"""The CUDA kernels as a backend on CPU tensors: their own source, executed by the emulator of tests/simt.

`evaluate(case, "cuda")` and whatever else names the backend then runs them, through the public functions.
"""

import contextlib
import ctypes
from types import SimpleNamespace
from unittest.mock import patch

from cuda_launchers import Launchers
from simt import Emulator, build

from cgc_kernels import backends
from cgc_kernels.backends import fused
from cgc_kernels.ops import Namespace, define

SOURCE = "tests/cuda_kernels.cu"
OPERATORS = tuple(name for stage in ("cam", "resample", "contrast", "cgc") for name in (stage, f"{stage}_backward"))

_current = SimpleNamespace(launchers=None)
_namespace = Namespace("cgc_kernels_emulated")
_stages = define(_namespace)
for _name in OPERATORS:
    _namespace.implement(_name, lambda *args, name=_name: getattr(_current.launchers, name)(*args), "cpu")


class Emulation:
    """One build of the kernels. form, blocks: of csrc/cuda/launch.h; the rest as for Emulator.setup."""

    def __init__(self, flavour: str = "plain", source=SOURCE, include=()):
        self.path = build(source, flavour, include=include)
        self.emulator = Emulator(self.path)
        self.library = ctypes.CDLL(str(self.path))
        self.watches = flavour == "instrumented"

    @contextlib.contextmanager
    def running(self, form: str = "automatic", blocks: int = 0, **device):
        """Within it, backend "cuda" is this build on CPU tensors."""
        self.emulator.setup(**device)
        watch = (self.emulator.watch, self.emulator.watch_output) if self.watches else (None, None)
        _current.launchers = Launchers(self.library, form, blocks, *watch)
        module = SimpleNamespace(entry_points=fused.entry_points("cuda", _stages))
        with (
            patch.dict(backends._MODULES, {"cuda": module}),
            patch.object(backends, "_obstacle", lambda *_: None),
        ):
            yield _current.launchers
        _current.launchers = None
