"""The CUDA kernels as a backend on CPU tensors: their own source, executed by the emulator of tests/cuda/simt.

`evaluate(case, "cuda")` and whatever else names the backend then runs them, through the public functions.
"""

import contextlib
import ctypes
from types import SimpleNamespace

from cgc_kernels import backends
from cgc_kernels.backends.backend import Backend
from cgc_kernels.ops import Namespace, backend_functions
from tests.cuda.launchers import Launchers
from tests.cuda.simt import Emulator, build

SOURCE = "tests/cuda/kernels.cu"
OPERATORS = tuple(name for stage in ("cam", "resample", "contrast", "cgc") for name in (stage, f"{stage}_backward"))

_current = SimpleNamespace(launchers=None)
_namespace = Namespace("cgc_kernels_emulated")
_functions = backend_functions(_namespace)
for _name in OPERATORS:
    _namespace.implement(_name, lambda *args, name=_name: getattr(_current.launchers, name)(*args), "cpu")


class Emulation:
    """One build of the kernels."""

    def __init__(self, flavour: str = "plain", source=SOURCE, include=()):
        self.path = build(source, flavour, include=include)
        self.emulator = Emulator(self.path)
        self.library = ctypes.CDLL(str(self.path))

    @contextlib.contextmanager
    def running(self, **device):
        """Within it, backend "cuda" is this build on CPU tensors. device: as for Emulator.setup."""
        self.emulator.setup(**device)
        # Also what is not instrumented: only watched memory is poison to a kernel that starts early.
        _current.launchers = Launchers(self.library, self.emulator.watch, self.emulator.watch_output)
        with backends.serving(Backend("cuda", **_functions._asdict(), device_types=("cpu",))):
            yield _current.launchers
        _current.launchers = None
