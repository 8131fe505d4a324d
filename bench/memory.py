"""Peak memory of a backend beyond its inputs and results, from VmHWM of a fresh process that runs nothing else.

`python -m bench.memory CASE BACKEND THREADS` (CASE as JSON) is that process; it prints the bytes.
"""

import ctypes
import dataclasses
import gc
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch

from .problems import build
from .workloads import Workload

_STATUS = Path("/proc/self/status")
_ROOT = Path(__file__).parent.parent
_REPEATS = 3
# Blocks from 64 KiB on then come from the system and go back to it, so VmHWM counts what is live, not the heap's holes.
_M_MMAP_THRESHOLD = -3


def measure(workload: Workload, backend: str, threads: int) -> int | None:
    """Peak extra bytes of one step; None where /proc does not tell. Good to about a quarter of a MiB."""
    if not _STATUS.exists():
        return None
    command = [sys.executable, "-m", "bench.memory", json.dumps(dataclasses.asdict(workload)), backend, str(threads)]
    result = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"measuring the memory of {workload} failed: {result.stderr.strip()[-500:]}")
    return int(result.stdout)


def _main(workload: str, backend: str, threads: str) -> None:
    fields = json.loads(workload)
    _glibc("mallopt", _M_MMAP_THRESHOLD, 1 << 16)
    torch.set_num_threads(int(threads))
    step = build(Workload(**fields | {"shape": tuple(fields["shape"])})).backend(backend)
    step(), step()  # loads code, starts threads, fills PyTorch's own caches
    print(round(median(_peak_extra(step) for _ in range(_REPEATS))))


def _peak_extra(step) -> int:
    gc.collect()
    _glibc("malloc_trim", 0)  # what the warm-up freed must not hide what this run takes
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    results = step()
    return max(0, _resident("VmHWM") - before - _storage_bytes(results))


def _glibc(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function:
        function(*arguments)


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _storage_bytes(results) -> int:
    """Bytes the results hold; an expanded view holds what it views."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in results}
    return sum(storages.values())


if __name__ == "__main__":
    _main(*sys.argv[1:])
