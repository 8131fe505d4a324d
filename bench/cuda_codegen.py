"""What nvcc makes of the CUDA kernels: registers, spills, occupancy and the widths of their memory instructions.

    python -m bench.cuda_codegen    # writes docs/cuda-codegen.md

Nothing is compiled: the build keeps what ptxas said beside each object in build/cuda, and cuobjdump reads the library.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .occupancy import occupancy

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "cgc_kernels" / "_cuda.so"
LOGS = ROOT / "build" / "cuda"
TARGET = ROOT / "docs" / "cuda-codegen.md"
ARCHITECTURES = (80, 90, 100)
THREADS = 256  # of every block

HEAD = """# The CUDA kernels as machine code

Written by `make codegen` from the build's own objects: nvcc {toolkit}, {architectures}. Nothing here was measured on a
device. Every block has {threads} threads; the occupancy is the theoretical one at the registers and the static shared
memory in the table. Stack is memory for local arrays and for calls; spills are registers that did not fit.

"""


class Kernel(NamedTuple):
    """One kernel on one architecture, as ptxas tells; bytes unless it is said otherwise."""

    name: str  # demangled, without namespaces and parameters: "cam_kernel<float, float, float>"
    symbol: str
    architecture: int  # 80, 90, 100, ...
    registers: int  # number of them, a thread
    stack: int
    spill_stores: int  # with those of the functions that it calls
    spill_loads: int
    shared: int  # static

    @property
    def occupancy(self) -> float:
        """Share of a multiprocessor's warps that can be resident."""
        return occupancy(self.registers, self.shared, THREADS, self.architecture)


class Accesses(NamedTuple):
    """Numbers of global memory instructions of one kernel, by width in bits."""

    loads: Counter
    stores: Counter


def demangle(symbols: Iterable[str]) -> dict[str, str]:
    """Symbol -> short readable name."""
    symbols = list(symbols)
    text = subprocess.run(["c++filt"], input="\n".join(symbols), text=True, capture_output=True, check=True).stdout
    names = [re.sub(r"^void |\(.*|\w+::", "", line) for line in text.splitlines()]
    return dict(zip(symbols, names, strict=True))


def parse(log: str) -> list[Kernel]:
    """Kernels of what `ptxas -v` printed."""
    found = []
    for part in log.split("Compiling entry function ")[1:]:
        symbol, architecture = re.match(r"'(\S+)' for 'sm_(\d+)", part).groups()
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        stack = re.search(r"(\d+) bytes cumulative stack size", part)
        stores, loads = (sum(int(frame[i]) for frame in frames) for i in (1, 2))
        static = int(shared[1]) if shared else 0
        depth = int(stack[1]) if stack else int(frames[0][0])
        found.append(Kernel("", symbol, int(architecture), int(registers[1]), depth, stores, loads, static))
    names = demangle(kernel.symbol for kernel in found)
    return [kernel._replace(name=names[kernel.symbol]) for kernel in found]


def kernels() -> list[Kernel]:
    """Kernels of the last build, by name and architecture; empty if there was none."""
    found = [kernel for log in sorted(LOGS.glob("*.cu-*.log")) for kernel in parse(log.read_text())]
    return sorted(found, key=lambda kernel: (kernel.name, kernel.architecture))


def cuobjdump() -> str | None:
    """NVIDIA's disassembler: of the path, of the toolkit, or the one that comes with triton."""
    folders = [Path(os.environ["CUDA_HOME"]) / "bin"] if os.environ.get("CUDA_HOME") else []
    triton = importlib.util.find_spec("triton")
    folders += [Path(p) / "backends" / "nvidia" / "bin" for p in (triton.submodule_search_locations if triton else [])]
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=os.pathsep.join(map(str, folders)))


def accesses(architecture: int, symbols: Iterable[str]) -> dict[str, Accesses]:
    """Symbol -> global memory instructions of these kernels in the library's machine code for one architecture."""
    tool = cuobjdump()
    if tool is None:
        raise RuntimeError("cuobjdump is neither on the path nor in CUDA_HOME, nor does triton bring one")
    # It looks for nvdisasm on the path.
    environment = {**os.environ, "PATH": f"{Path(tool).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [tool, "-sass", "-arch", f"sm_{architecture}", "-fun", ",".join(symbols), str(LIBRARY)]
    text = subprocess.run(command, text=True, capture_output=True, check=True, env=environment).stdout
    return {part.split("\n", 1)[0].strip(): count(part) for part in text.split("Function : ")[1:]}


def count(sass: str) -> Accesses:
    """Global memory instructions of a function: LDG and STG, 32 bits wide unless they say otherwise."""
    found = Accesses(Counter(), Counter())
    for kind, modifiers in re.findall(r"\b(LDG|STG)((?:\.\w+)*) ", sass):
        width = re.search(r"\.(?:[US])?(8|16|64|128|256)\b", modifiers)
        (found.loads if kind == "LDG" else found.stores)[int(width[1]) if width else 32] += 1
    return found


def widths(counter: Counter) -> str:
    """As "128 x 12, 32 x 3"."""
    return ", ".join(f"{width} x {number}" for width, number in sorted(counter.items(), reverse=True)) or "-"


def rows(found: list[Kernel]) -> list[str]:
    """The table, as lines of Markdown."""
    symbols = {a: [kernel.symbol for kernel in found if kernel.architecture == a] for a in ARCHITECTURES}
    memory = {architecture: accesses(architecture, names) for architecture, names in symbols.items() if names}
    figures = ("sm", "registers", "stack", "spill stores", "spill loads", "static shared", "occupancy")
    lines = [f"| kernel | {' | '.join(figures)} | loads | stores |", f"| --- |{' ---: |' * len(figures)} --- | --- |"]
    for k in found:
        cells = (k.architecture, k.registers, k.stack, k.spill_stores, k.spill_loads, k.shared, f"{k.occupancy:.0%}")
        moved = memory[k.architecture][k.symbol]
        ends = (widths(moved.loads), widths(moved.stores))
        lines.append(f"| `{k.name}` | {' | '.join(map(str, (*cells, *ends)))} |")
    return lines


def main() -> None:
    """Writes the document."""
    found = [kernel for kernel in kernels() if kernel.architecture in ARCHITECTURES]
    if {kernel.architecture for kernel in found} != set(ARCHITECTURES):
        raise SystemExit('build the CUDA library first: CGC_CUDA=1 CGC_CUDA_ARCH="8.0 9.0 10.0" make install')
    toolkit = json.loads(LIBRARY.with_name("_build.json").read_text())["cuda"]["toolkit"]
    architectures = ", ".join(f"sm_{each}" for each in ARCHITECTURES)
    head = HEAD.format(toolkit=toolkit, architectures=architectures, threads=THREADS)
    lines = rows(found)
    TARGET.write_text(
        head + "Loads and stores: instructions on global memory, by width in bits.\n\n" + "\n".join(lines) + "\n"
    )
    print(f"{TARGET.relative_to(ROOT)}: {len(lines) - 2} kernels")


if __name__ == "__main__":
    main()
