"""`python -m bench.codegen`: the machine code of the Triton kernels, made and read without a GPU.

The launchers run on CPU tensors with the launch itself replaced: what they would have launched is compiled for each
architecture, specialised as a launch would have it, and the tools that triton brings read the result: registers,
spills, shared memory, theoretical occupancy, and what the instructions are. Writes build/codegen/triton.md and rows of
docs/codegen.md.
"""

import argparse
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from cgc_kernels.backends.triton.kernels import cam, cgc, resample
from cgc_kernels.backends.triton.kernels.launch import WARPS
from cgc_kernels.options import OBJECTIVES

from . import codegen_page, sass
from .occupancy import occupancy

ARCHITECTURES = (80, 90, 100)
OPTIONS = ("num_warps", "num_stages", "maxnreg")
LEAST_SHARED = 99 * 1024  # bytes a block may have on every device since compute capability 8.0
# (features, gradients): every pair that the checks let through.
DTYPES = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
    (torch.float64, torch.float64),
)
WEIGHTINGS = ("pooled", "gradcam", "elementwise")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Two maps for each tile: H * W odd, and a multiple of what a wide access takes.
SIDES = ((7, 7), (8, 8), (9, 9), (14, 14), (31, 31), (32, 32))
MIXED = torch.bfloat16, torch.bfloat16
COMPILER = f"triton {triton.__version__}"
PREFACE = """# Machine code of the Triton kernels

Made by `python -m bench.codegen` with {compiler}, without a GPU: each kernel is compiled as the launcher would
specialise it, for {architectures} (a cell's entries, in this order), and read with cuobjdump. Nothing was executed.
"Apart" are the operators of single stages. Shown are bfloat16 in channels_last, and every objective and transform for
7 x 7 maps; the tests also compile the other dtypes, layouts and sizes. Occupancy is theoretical: resident warps over
those that a multiprocessor can hold. 16-byte loads and stores are counted in the program text, where a loop's body
counts once.
"""
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Request(NamedTuple):
    """What a launcher asked for: a kernel, its arguments by name, and the options of the compiler."""

    case: str
    kernel: JITFunction
    arguments: dict
    options: dict


class Code(NamedTuple):
    """What the assembler says of a launch on one architecture."""

    case: str
    kernel: str
    architecture: int
    registers: int
    stack: int  # bytes a thread; above 0 registers were spilled
    local: int
    shared: int  # bytes a block
    threads: int
    facts: sass.Facts  # none if the instructions were not read

    @property
    def occupancy(self) -> float:
        """Resident warps over those that a multiprocessor can hold."""
        return occupancy(self.registers, self.shared, self.threads, self.architecture)

    @property
    def spills(self) -> bool:
        """Whether values that found no register live in memory."""
        return self.stack > 0 or self.local > 0

    def wide(self, kind: str) -> int:
        """Number of loads, or of stores, of 16 bytes or more."""
        return sum(count for width, count in getattr(self.facts, kind).items() if width >= 128)


class Call(NamedTuple):
    """A call of the fused operators, forward and backward."""

    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32)
    layout: str = "channels_last"
    weighting: str = "pooled"
    side: tuple[int, int] = (7, 7)
    objective: str = "released"
    crop: bool = True

    def __str__(self) -> str:
        names = "+".join(dict.fromkeys(str(d).removeprefix("torch.") for d in self.dtypes))
        height, width = self.side
        transform = "crop" if self.crop else "warp"
        return f"{names} {self.layout} {self.weighting} {height}x{width} {self.objective} {transform}"


MAIN = Call(MIXED)


def calls() -> list[Call]:
    """Calls that reach every tile in every dtype, layout and weighting, and every objective, transform and precision
    in every padded size of map. The two groups are not multiplied: streaming and resampling follow one another."""
    streams = product(DTYPES, LAYOUTS, WEIGHTINGS, SIDES)
    accumulators = [pair for pair in DTYPES if pair[0] in (torch.float32, torch.float64)]
    maps = product(
        accumulators, ("channels_last",), ("pooled",), ((7, 7), (7, 32), (32, 32)), OBJECTIVES, (True, False)
    )
    return list(dict.fromkeys([*(Call(*one) for one in streams), *(Call(*one) for one in maps)]))


def launches(call: Call, batch: int = 64, channels: int = 512) -> list[Request]:
    """What one forward and backward of the fused loss, and of the stages apart, launch."""
    shape = (batch, channels, *call.side)
    features, gradients = (torch.empty(shape, dtype=d, memory_format=LAYOUTS[call.layout]) for d in call.dtypes)
    if call.weighting == "pooled":
        gradients = gradients.new_empty(batch, channels)
    views = features, gradients, features, gradients
    fields = [torch.empty(batch, dtype=torch.int64) for _ in range(4)] + [torch.empty(batch, dtype=torch.bool)]
    transform = fields if call.crop else [torch.empty(batch, 3, 3, dtype=torch.float64)]
    elementwise, objective = call.weighting == "elementwise", OBJECTIVES.index(call.objective)
    with recorded(str(call)) as found:
        loss, saved = cgc.cgc(*views, transform, 224, 224, 0.5, elementwise, objective, 0.0, 1e-8)
        if call.weighting == "gradcam":
            weights = loss.new_empty(batch, channels)
            views = features, weights, features, weights
        cgc.cgc_backward(loss, *views, transform, saved, 224, 224, 0.5, elementwise, objective, 0.0, 1e-8, 15)
    heatmaps = loss.new_empty(batch, *call.side)
    with recorded(f"{call}, apart") as apart:
        *outputs, state = resample.resample(heatmaps, heatmaps, transform, 224, 224, 1e-8, objective)
        resample.resample_backward(*outputs, heatmaps, heatmaps, *outputs, transform, state, 224, 224, 1e-8, objective)
        cam.cam_backward(heatmaps, heatmaps, *views[:2], True, True)
    return found + apart


def demanded(launch: Request) -> tuple[int, int]:
    """Loads and stores of 16 bytes that a thread needs for one tile of each feature tensor, where the format of the
    features lets it have them: channels_last, or contiguous with H * W elements a multiple of 16 bytes."""
    given = launch.arguments
    if "BLOCK" not in given:
        return 0, 0
    # The compiler drops accesses that all lie beyond H * W.
    per_thread = given["BLOCK"] * given["P"] // (32 * WARPS)

    def accesses(name):
        size = given[name].element_size()
        last = given["LAYOUTS"] == 3
        return per_thread * size // 16 if given[name].dim() == 4 and (last or given["P"] * size % 16 == 0) else 0

    loaded = ["features", "gradients"]
    stored = [f"grad_{name}" for name in loaded] if "NEEDS" in given else []
    return sum(map(accesses, loaded)), sum(map(accesses, stored))


def covering(every: list[Request]) -> list[tuple[Request, int]]:
    """Each launch on one architecture, all architectures in turn: what a test has the time for."""
    by_kernel: dict[str, list[Request]] = {}
    for launch, _, _ in distinct(every, ARCHITECTURES[0]):
        by_kernel.setdefault(launch.kernel.__name__, []).append(launch)
    return [
        (launch, ARCHITECTURES[(i + shift) % len(ARCHITECTURES)])
        for shift, group in enumerate(by_kernel.values())
        for i, launch in enumerate(group)
    ]


def _stand_in(value):
    """For a tensor one of its type, rank and alignment, with one element: hundreds of launches are kept, and a process
    with all their tensors is too large to fork."""
    if not isinstance(value, torch.Tensor):
        return value
    first = value.data_ptr() % 16
    memory = torch.empty(first + value.element_size(), dtype=torch.uint8)
    return memory[first:].view(value.dtype).view([1] * value.dim())


@contextmanager
def recorded(case: str) -> Iterator[list[Request]]:
    """Kernels launched inside are not run, but noted."""
    found, run = [], JITFunction.run

    def note(self, *arguments, grid, warmup, **named):
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        bound = self.signature.bind(*arguments, **named)
        found.append(Request(case, self, {key: _stand_in(value) for key, value in bound.arguments.items()}, options))

    JITFunction.run = note
    try:
        yield found
    finally:
        JITFunction.run = run


def specialised(launch: Request, architecture: int) -> tuple[ASTSource, dict]:
    """The source as a launch would have specialised it, and the compiler's options."""
    kernel, backend = launch.kernel, make_backend(GPUTarget("cuda", architecture, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(**launch.arguments, **launch.options, debug=False)
    options, signature, constants, attributes = kernel._pack_args(
        backend, launch.options, bound, specialization, options
    )
    return ASTSource(kernel, signature, constants, attributes), options.__dict__


def distinct(every: list[Request], architecture: int) -> list[tuple[Request, ASTSource, dict]]:
    """Launches that lead to different code, each once."""
    found = {}
    for launch in every:
        source, options = specialised(launch, architecture)
        found.setdefault((source.hash(), *launch.options.values()), (launch, source, options))
    return list(found.values())


def instructions(launch: Request, architecture: int) -> list[sass.Instruction]:
    """The machine code of a launch."""
    with _cubin(_compiled(launch, architecture)) as file:
        return _instructions(file)


def _instructions(file: str) -> list[sass.Instruction]:
    (code,) = sass.functions(_tool("cuobjdump", "-sass", file)).values()
    return code


@contextmanager
def _cubin(kernel) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        yield file.name


def _compiled(launch: Request, architecture: int):
    source, options = specialised(launch, architecture)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def compiled(job: tuple[Request, int], facts: bool = True) -> Code:
    """Compile for one architecture and read the machine code; without facts in half the time."""
    launch, architecture = job
    kernel = _compiled(launch, architecture)
    with _cubin(kernel) as file:
        usage = _tool("cuobjdump", "--dump-resource-usage", file)
        code = sass.facts(_instructions(file) if facts else [])
    figures = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    if not figures:
        raise RuntimeError(f"cuobjdump must report the resources of {launch.case}, got {usage!r}")
    # Triton asks for its shared memory at the launch: the cubin knows the static part only.
    shared = max(figures["SHARED"], kernel.metadata.shared)
    threads = 32 * kernel.metadata.num_warps
    sizes = figures["REG"], figures["STACK"], figures["LOCAL"], shared
    return Code(launch.case, launch.kernel.__name__, architecture, *sizes, threads, code)


def _tool(name: str, *arguments: str) -> str:
    path = f"{_TOOLS}{os.pathsep}{os.environ['PATH']}"  # cuobjdump starts nvdisasm, from beside it
    command = [str(_TOOLS / name), *arguments]
    return subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True).stdout


def compile_all(jobs: list[tuple[Request, int]], processes: int) -> Iterator[Code]:
    """Compile in parallel, in order. Forked, for a launch cannot be sent to another process but by inheritance."""
    global _jobs
    _jobs = jobs
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(_compile_job, range(len(jobs)))


_jobs: list[tuple[Request, int]] = []


def _compile_job(index: int) -> Code:
    return compiled(_jobs[index])


def table(codes: list[Code]) -> str:
    """Markdown: a row for each kernel and case, the architectures side by side."""
    head = "| kernel | case | registers | spilled bytes | shared, KiB | occupancy | 16-byte loads, stores |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    rows: dict[tuple[str, str], list[Code]] = {}
    for code in codes:
        rows.setdefault((code.kernel, code.case), []).append(code)
    for (kernel, case), found in rows.items():
        found.sort(key=lambda code: code.architecture)
        cells = [
            " / ".join(str(code.registers) for code in found),
            " / ".join(str(code.stack + code.local) for code in found),
            " / ".join(f"{code.shared / 1024:.0f}" for code in found),
            " / ".join(f"{code.occupancy:.0%}" for code in found),
            " / ".join(f"{code.wide('loads')}, {code.wide('stores')}" for code in found),
        ]
        lines.append(f"| {kernel.removesuffix('_kernel')} | {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown() -> list[tuple[Request, int]]:
    """What the page shows: the fused loss in the main case, each kernel once."""
    architecture = codegen_page.ARCHITECTURE
    every = distinct(launches(MAIN), architecture)
    return [(launch, architecture) for launch, _, _ in every if launch.case == str(MAIN)]


def section(codes: Iterable[Code]) -> str:
    """The rows of the page; codes: those of `shown`, others are left out."""
    rows = (
        codegen_page.Row(
            code.kernel.removesuffix("_kernel"),
            code.case,
            code.registers,
            code.stack + code.local,
            code.occupancy,
            code.facts,
        )
        for code in codes
        if (code.case, code.architecture) == (str(MAIN), codegen_page.ARCHITECTURE)
    )
    return codegen_page.section(COMPILER, rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    cases = [Call(MIXED, weighting=weighting, side=side) for weighting in WEIGHTINGS for side in ((7, 7), (14, 14))]
    cases += [Call(MIXED, objective=objective, crop=crop) for objective in OBJECTIVES for crop in (True, False)]
    launched = [launch for call in cases for launch in launches(call)]
    jobs = [(launch, architecture) for launch, _, _ in distinct(launched, 90) for architecture in ARCHITECTURES]
    codes = list(tqdm(compile_all(jobs, args.processes), total=len(jobs), unit="kernel", disable=None))
    names = ", ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
    text = PREFACE.format(compiler=COMPILER, architectures=names)
    codegen_page.write("triton", f"{text}\n{table(codes)}\n", section(codes))
    spilled = sum(code.spills for code in codes)
    print(f"{len(codes)} kernels, {spilled} with spilled registers: build/codegen/triton.md, docs/codegen.md")


if __name__ == "__main__":
    main()
