"""What nvcc makes of the CUDA kernels: registers, spills, occupancy, and what their instructions are.

    python -m bench.cuda_codegen    # writes build/codegen/cuda.md and rows of docs/codegen.md

Nothing is compiled: the build keeps what ptxas said beside each object in build/cuda, and cuobjdump reads the library.
"""

import argparse
import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from . import codegen_page, sass
from .codegen_page import ROOT
from .occupancy import occupancy

LIBRARY = ROOT / "cgc_kernels" / "_cuda.so"
LOGS = ROOT / "build" / "cuda"
ARCHITECTURES = (80, 90, 100)

HEAD = """# The CUDA kernels as machine code

Written by `make codegen` from the build's own objects: {compiler}. Nothing here was measured on a device. A cell
holds what is so for {architectures}, in this order, or one value for all.

Threads are those of the largest block; the occupancy is the theoretical one at that block, the registers and the static
shared memory in the table. Stack is memory for local arrays and for calls; spilled are bytes of registers that did not
fit. Instructions are counted in the text of the program, where a loop's body counts once. In flight: the most 16-byte
loads that a thread issues before it uses a result of one of them. Tensor: HMMA and DMMA. Double: calculations in double
precision and conversions. Loads and stores of global memory: those of 16 bytes + narrower ones.

"""

# On the page: a kernel of each step of a call with 7 x 7 maps, released objective, crops.
SHOWN = {
    "cam_rows<__nv_bfloat16, __nv_bfloat16, 8, false>": "bfloat16 channels_last pooled",
    "cam_rows_backward<__nv_bfloat16, __nv_bfloat16, 8, false>": "the same",
    "cam_flat<float, float, 4, true>": "float32 contiguous elementwise",
    "cam_flat_backward<float, float, 4, true>": "the same",
    "crop_matrices<float>": "all but float64",
    "resample_forward<float, float, float, 1, false>": "the same",
    "contrast_forward<float>": "the same",
    "cgc_backward<float, 1>": "the same",
}


class Usage(NamedTuple):
    """One kernel on one architecture, as ptxas tells; bytes unless it is said otherwise."""

    symbol: str
    architecture: int  # 80, 90, 100, ...
    registers: int  # number of them, a thread
    stack: int
    spill_stores: int  # with those of the functions that it calls
    spill_loads: int
    shared: int  # static


class Kernel(NamedTuple):
    """One kernel of the library on one architecture."""

    name: str  # demangled, without namespaces and parameters: "cam_rows<float, float, float, 4, true>"
    usage: Usage
    threads: int  # of the largest block
    code: sass.Facts

    @property
    def base(self) -> str:
        """The name without the arguments of the template."""
        return self.name.partition("<")[0]

    @property
    def arguments(self) -> list[str]:
        """Arguments of the template."""
        return re.findall(r"[^,<>]+(?:<[^<>]*>)?", self.name.partition("<")[2].replace(", ", ","))

    @property
    def occupancy(self) -> float:
        """Share of a multiprocessor's warps that can be resident."""
        return occupancy(self.usage.registers, self.usage.shared, self.threads, self.usage.architecture)


def demangle(symbols: Iterable[str]) -> dict[str, str]:
    """Symbol -> short readable name."""
    symbols = list(symbols)
    text = subprocess.run(["c++filt"], input="\n".join(symbols), text=True, capture_output=True, check=True).stdout
    # Enumerators among the template's arguments stand there by type and number: (cgc::Weighting)2.
    bare = [re.sub(r"^void |\(anonymous namespace\)::|\w+::|\(\S+\)(?=\d)", "", line) for line in text.splitlines()]
    names = [line.partition("(")[0] for line in bare]
    return dict(zip(symbols, names, strict=True))


def parse(log: str) -> list[Usage]:
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
        found.append(Usage(symbol, int(architecture), int(registers[1]), depth, stores, loads, static))
    return found


def missing() -> str:
    """Why there is nothing to read here, with the remedy; empty if there is."""
    if not LIBRARY.exists() or not any(LOGS.glob("*.cu-*.log")):
        return "needs the CUDA library and its objects in build/cuda: CGC_CUDA=1 make install"
    if cuobjdump() is None:
        return "cuobjdump is neither on the path nor in CUDA_HOME, nor does triton bring one"
    return "" if shutil.which("c++filt") else "needs c++filt (binutils)"


@functools.cache
def kernels(architecture: int) -> list[Kernel]:
    """Kernels of the library for one architecture, by name; empty if it was not built for that."""
    logs = sorted(LOGS.glob("*.cu-*.log"), key=lambda log: log.stat().st_mtime)
    usages = {u.symbol: u for log in logs for u in parse(log.read_text()) if u.architecture == architecture}
    code = sass.functions(dump("-sass", architecture))
    threads = sass.block_sizes(dump("-elf", architecture))
    names = demangle(code)
    # Logs of sources that are gone may still lie there; the library is what counts.
    found = [Kernel(names[symbol], usages[symbol], threads[symbol], sass.facts(code[symbol])) for symbol in code]
    return sorted(found, key=lambda kernel: kernel.name)


def cuobjdump() -> str | None:
    """NVIDIA's disassembler: of the path, of the toolkit, or the one that comes with triton."""
    folders = [Path(os.environ["CUDA_HOME"]) / "bin"] if os.environ.get("CUDA_HOME") else []
    triton = importlib.util.find_spec("triton")
    folders += [Path(p) / "backends" / "nvidia" / "bin" for p in (triton.submodule_search_locations if triton else [])]
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=os.pathsep.join(map(str, folders)))


def dump(what: str, architecture: int, file: Path = LIBRARY) -> str:
    """What cuobjdump prints of a library or an object for one architecture; what: "-sass" or "-elf"."""
    tool = cuobjdump()
    # It looks for nvdisasm on the path.
    environment = {**os.environ, "PATH": f"{Path(tool).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [tool, what, "-arch", f"sm_{architecture}", str(file)]
    return subprocess.run(command, text=True, capture_output=True, check=True, env=environment).stdout


def _moved(counter) -> str:
    wide = counter[128] + counter[256]
    return f"{wide} + {counter.total() - wide}"


COLUMNS: dict[str, Callable[[Kernel], object]] = {
    "threads": lambda k: k.threads,
    "registers": lambda k: k.usage.registers,
    "stack": lambda k: k.usage.stack,
    "spilled": lambda k: k.usage.spill_stores + k.usage.spill_loads,
    "static shared": lambda k: k.usage.shared,
    "occupancy": lambda k: f"{k.occupancy:.0%}",
    "instructions": lambda k: k.code.instructions,
    "in flight": lambda k: k.code.in_flight,
    "instructions a 16-byte load": lambda k: f"{k.code.instructions_a_load:.0f}" if k.code.wide_loads else "-",
    "barriers": lambda k: k.code.barriers,
    "tensor": lambda k: k.code.tensor,
    "double": lambda k: k.code.double,
    "loads": lambda k: _moved(k.code.loads),
    "stores": lambda k: _moved(k.code.stores),
}


def rows(found: Iterable[list[Kernel]]) -> list[str]:
    """The table, as lines of Markdown; found: the kernels of each architecture."""
    lines = [f"| kernel | {' | '.join(COLUMNS)} |", f"| --- |{' ---: |' * len(COLUMNS)}"]
    for each in zip(*found, strict=True):
        values = [[str(value(kernel)) for kernel in each] for value in COLUMNS.values()]
        texts = [" / ".join(cell if len(set(cell)) > 1 else cell[:1]) for cell in values]
        lines.append(f"| `{each[0].name}` | {' | '.join(texts)} |")
    return lines


@functools.cache
def compiler(architecture: int) -> str:
    """Who made the library: "nvcc 13.0.88"; without the number where the toolkit does not write it."""
    release = re.search(r"release [\d.]+, V([\d.]+)", dump("-elf", architecture))
    return f"nvcc {release[1]}" if release else "nvcc"


def section() -> str:
    """The rows of the page."""
    found = {kernel.name: kernel for kernel in kernels(codegen_page.ARCHITECTURE)}
    return codegen_page.section(
        compiler(codegen_page.ARCHITECTURE), (_row(found[name], case) for name, case in SHOWN.items())
    )


def _row(kernel: Kernel, case: str) -> codegen_page.Row:
    usage = kernel.usage
    spilled = usage.spill_stores + usage.spill_loads
    return codegen_page.Row(kernel.base, case, usage.registers, spilled, kernel.occupancy, kernel.code)


def main() -> None:
    """Command line, without options: writes the table and the page."""
    argparse.ArgumentParser(prog="python -m bench.cuda_codegen", description=__doc__.partition("\n")[0]).parse_args()
    reason = missing()
    found = [] if reason else [kernels(architecture) for architecture in ARCHITECTURES]
    if reason or not all(found):
        raise SystemExit(reason or 'build the library first: CGC_CUDA=1 CGC_CUDA_ARCH="8.0 9.0 10.0" make install')
    lines = rows(found)
    names = ", ".join(f"sm_{each}" for each in ARCHITECTURES)
    head = HEAD.format(compiler=compiler(codegen_page.ARCHITECTURE), architectures=names)
    codegen_page.write("cuda", head + "\n".join(lines) + "\n", section())
    print(f"{len(lines) - 2} kernels: build/codegen/cuda.md, docs/codegen.md")


if __name__ == "__main__":
    main()
