"""A library of emulated kernels, with what the emulator has seen of them."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

KINDS = ("out_of_bounds", "race", "uninitialised", "warp_op", "deadlock", "misuse", "dependence")


class Traffic(NamedTuple):
    """Global memory traffic of one tensor, in one direction, summed over warp requests.

    A request is one load or store instruction, executed once by a warp. Sectors are the pieces of 32 bytes in which
    the hardware moves memory.
    """

    requested: int  # bytes, of each lane
    distinct: int  # bytes; what several lanes of a request read together counts once
    sectors: int
    requests: int
    lanes: int
    wasteful: int  # requests that use less than 90 % of their sectors

    @property
    def efficiency(self) -> float:
        """Share of the bytes of the sectors that is used."""
        return self.distinct / (32 * self.sectors) if self.sectors else 1.0


class Emulator:
    """Kernels built by `build`. Launchers are attributes: pass tensors for pointers, and Python numbers.

    The emulator's state is the process's: watched tensors and errors are common to all libraries until `reset`.
    """

    def __init__(self, path: str | Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.simt_messages.restype = ctypes.c_char_p
        self._library.simt_errors.restype = ctypes.c_ulonglong
        self._library.simt_traffic.restype = ctypes.c_bool
        self._kept = []  # watched tensors stay where they are

    def __getattr__(self, name: str):
        function = getattr(self._library, name)
        return lambda *arguments: function(*map(_argument, arguments))

    def setup(self, seed: int = 0, yield_p: float = 0.0, dependent: bool = True) -> None:
        """Forgets what was watched and found; chooses the schedule and the share of accesses with a context switch.

        dependent: whether the device lets a dependent launch start before its predecessor has ended.
        """
        self._library.simt_reset()
        self._library.simt_setup(ctypes.c_uint(seed), ctypes.c_double(yield_p), ctypes.c_bool(dependent))
        self._kept = []

    def watch(self, **tensors) -> None:
        """Registers global memory, by name. From then on an access to anything else is out of bounds."""
        self._watch(self._library.simt_watch, tensors)

    def watch_output(self, **tensors) -> None:
        """The same, where a kernel must write each byte before one reads it."""
        self._watch(self._library.simt_watch_output, tensors)

    def launches(self) -> int:
        """Number of kernels started since the process began."""
        return self._library.simt_launches()

    def errors(self) -> int:
        """Number of faults found since `setup`."""
        return self._library.simt_errors()

    def error_counts(self) -> dict[str, int]:
        """Number of faults, by kind."""
        counts = (ctypes.c_ulonglong * len(KINDS))()
        self._library.simt_error_counts(counts)
        return dict(zip(KINDS, counts, strict=True))

    def messages(self) -> str:
        """The first faults, a line each, with the place in the source."""
        return re.sub(r"(\S+\.so)\+(0x[0-9a-f]+)", _place, self._library.simt_messages().decode())

    def loads(self, name: str) -> Traffic:
        """What instrumented kernels have read of the tensors watched as `name`."""
        return self._traffic(name, 0)

    def stores(self, name: str) -> Traffic:
        """What instrumented kernels have written."""
        return self._traffic(name, 1)

    def assert_clean(self) -> None:
        """Raises AssertionError with the messages if a fault was found."""
        assert self.errors() == 0, f"{self.error_counts()}\n{self.messages()}"

    def _watch(self, function, tensors: dict) -> None:
        for name, tensor in tensors.items():
            self._kept.append(tensor)
            # Of a view with gaps, as an expanded or sliced one, all bytes from the first to the last are registered.
            spans = ((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            count = (1 + sum(spans)) * tensor.element_size() if tensor.numel() else 0
            # A tensor of bytes is a workspace for larger things.
            element = ctypes.c_size_t(max(2, tensor.element_size()))
            function(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(count), name.encode(), element)

    def _traffic(self, name: str, write: int) -> Traffic:
        sums = (ctypes.c_ulonglong * 6)()
        if not self._library.simt_traffic(name.encode(), ctypes.c_int(write), sums):
            raise KeyError(f"no tensor is watched as {name!r}")
        return Traffic(*sums)


def _argument(value):
    if hasattr(value, "data_ptr"):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_double(value)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    return value


def _place(match: re.Match) -> str:
    if shutil.which("addr2line") is None:
        return match[0]
    done = subprocess.run(["addr2line", "-i", "-e", match[1], match[2]], text=True, capture_output=True)
    return done.stdout.strip().replace("\n", ", in ") or match[0]
