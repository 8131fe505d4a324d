"""The floor: the time that moving the bytes a workload must move takes on this machine, at this moment.

bytes read / bandwidth of a plain read + bytes written / bandwidth of streaming stores (floor.cpp), both run by as many
threads as PyTorch has, on buffers of the size of the workload's tensors.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("floor.cpp")
_BUILD = _SOURCE.parent.parent / "build" / "bench"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_BLOCK = 512  # bytes; the loops take whole blocks
_SMALLEST = 1 << 20  # bytes of a buffer: below this, starting the threads is what one would measure


class FloorUnavailable(RuntimeError):
    """The loops cannot be built here; the message says why."""


@dataclass(frozen=True)
class Traffic:
    """Bytes a workload must move (each input read once a pass, each gradient written once).

    read, written: over all passes; inputs, outputs: of the tensors themselves, what the floor's buffers have.
    """

    read: int
    written: int
    inputs: int
    outputs: int

    @property
    def total(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


class Floor:
    """Measures the floor of one workload. Raises FloorUnavailable without a compiler.

    Example::

        >>> floor = Floor(Traffic(read=1 << 26, written=1 << 25, inputs=1 << 26, outputs=1 << 25))
        >>> seconds = floor.seconds()
    """

    def __init__(self, traffic: Traffic):
        self._library = library()
        self._traffic = traffic
        self._source = _buffer(traffic.inputs)
        self._target = _buffer(traffic.outputs) if traffic.written else None

    def seconds(self) -> float:
        """Runs the loops once; the floor in seconds."""
        threads = torch.get_num_threads()
        seconds = self._traffic.read / _bandwidth(self._library.floor_read, *self._source[1:], threads)
        if self._target:
            seconds += self._traffic.written / _bandwidth(self._library.floor_write, *self._target[1:], threads)
        return seconds


@cache
def library() -> ctypes.CDLL:
    """The loops, compiled at the first use and kept in build/bench. Raises FloorUnavailable."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        raise FloorUnavailable(f"no floor: it needs a C++ compiler, {compiler or 'c++'} was not found")
    command = (*compiler.split(), *_FLAGS)
    key = hashlib.sha256(repr((command, _processor(), _SOURCE.read_bytes())).encode()).hexdigest()[:16]
    path = _BUILD / f"floor-{key}.so"
    if not path.exists():
        _compile(command, path)
    loops = ctypes.CDLL(str(path))
    for loop in (loops.floor_read, loops.floor_write):
        loop.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return loops


def _compile(command, path):
    _BUILD.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    result = subprocess.run(
        [*command, str(_SOURCE), "-o", str(unfinished)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise FloorUnavailable(f"no floor: {' '.join(command)} failed: {result.stderr.strip().splitlines()[-1]}")
    unfinished.rename(path)


def _processor() -> str:
    """What -march=native depends on, as far as it is told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _buffer(size: int) -> tuple[torch.Tensor, int, int]:
    """(owner, 64-byte aligned address, bytes) of a buffer whose pages are all touched."""
    size = max(size, _SMALLEST) // _BLOCK * _BLOCK
    owner = torch.ones(size + 64, dtype=torch.uint8)
    return owner, owner.data_ptr() + -owner.data_ptr() % 64, size


def _bandwidth(loop, address: int, size: int, threads: int) -> float:
    start = time.perf_counter()
    loop(address, size, threads)
    return size / (time.perf_counter() - start)
