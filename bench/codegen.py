"""`python -m bench.codegen`: the machine code of the Triton kernels, made and read without a GPU.

The launchers run on CPU tensors with the launch itself replaced: what they would have launched is compiled for each
architecture, with the specialisation that a launch would have chosen, and the tools that triton brings read the result:
registers, spills, shared memory, theoretical occupancy, and the width of every access to features and gradients. Writes
docs/triton-codegen.md.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from cgc_kernels.backends.triton.kernels import cam, cgc, resample

from .occupancy import occupancy

ARCHITECTURES = (80, 90, 100)
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
OBJECTIVES = ("released", "paper", "mse")
TABLE = Path(__file__).parent.parent / "docs" / "triton-codegen.md"
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_STREAMED = ("features", "gradients", "aug_features", "aug_gradients")


class Launch(NamedTuple):
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
    loads: dict[int, int]  # accesses to global memory in the program text, by their width in bytes
    stores: dict[int, int]

    @property
    def occupancy(self) -> float:
        """Resident warps over those that a multiprocessor can hold."""
        return occupancy(self.registers, self.shared, self.threads, self.architecture)


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


def calls(sides=SIDES, dtypes=DTYPES) -> list[Call]:
    """Calls that reach every tile in every dtype, layout and weighting, and every objective, transform and precision
    in every padded size of map. The two groups are not multiplied: streaming and resampling follow one another."""
    streams = product(dtypes, LAYOUTS, WEIGHTINGS, sides)
    accumulators = [pair for pair in dtypes if pair[0] in (torch.float32, torch.float64)]
    maps = product(
        accumulators, ("channels_last",), ("pooled",), ((7, 7), (7, 32), (32, 32)), OBJECTIVES, (True, False)
    )
    return list(dict.fromkeys([*(Call(*one) for one in streams), *(Call(*one) for one in maps)]))


def launches(call: Call, batch: int = 64, channels: int = 512) -> list[Launch]:
    """What one forward and backward of the fused loss, and of the stages apart, launch."""
    shape = (batch, channels, *call.side)
    features, gradients = (torch.empty(shape, dtype=d, memory_format=LAYOUTS[call.layout]) for d in call.dtypes)
    if call.weighting == "pooled":
        gradients = gradients.new_empty(batch, channels)
    views = features, gradients, features, gradients
    transform = torch.empty(batch, 5, dtype=torch.int64) if call.crop else torch.empty(batch, 3, 3, dtype=torch.float64)
    elementwise, objective = call.weighting == "elementwise", OBJECTIVES.index(call.objective)
    with recorded(str(call)) as found:
        outputs = cgc.cgc(*views, transform, 224, 224, 0.5, elementwise, objective, 0.0, 1e-8)
        loss, heatmaps, weights, *saved = outputs
        if call.weighting == "gradcam":
            views = features, weights[0], features, weights[1]
        cgc.cgc_backward(
            loss, *views, transform, heatmaps, *saved, 224, 224, 0.5, elementwise, objective, 0.0, 1e-8, 15
        )
        resample.resample(*heatmaps, transform, 224, 224, 1e-8, objective)
        resample.resample_backward(*saved[:3], *heatmaps, transform, saved[-1], 224, 224, 1e-8, objective)
        cam.cam_backward(heatmaps[0], heatmaps[0], *views[:2], True, True)
    return found


@contextmanager
def recorded(case: str) -> Iterator[list[Launch]]:
    """Kernels launched inside are not run, but noted."""
    found, run = [], JITFunction.run

    def note(self, *arguments, grid, warmup, **named):
        options = {"num_warps": named.pop("num_warps", 4)}
        bound = self.signature.bind(*arguments, **named)
        found.append(Launch(case, self, dict(bound.arguments), options))

    JITFunction.run = note
    try:
        yield found
    finally:
        JITFunction.run = run


def specialised(launch: Launch, architecture: int) -> tuple[ASTSource, dict]:
    """The source as a launch would have specialised it, and the compiler's options."""
    kernel, backend = launch.kernel, make_backend(GPUTarget("cuda", architecture, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(**launch.arguments, **launch.options, debug=False)
    options, signature, constants, attributes = kernel._pack_args(backend, {}, bound, specialization, options)
    return ASTSource(kernel, signature, constants, attributes), options.__dict__


def distinct(every: list[Launch], architecture: int) -> list[tuple[Launch, ASTSource, dict]]:
    """Launches that lead to different code, each once."""
    found = {}
    for launch in every:
        source, options = specialised(launch, architecture)
        found.setdefault((source.hash(), launch.options["num_warps"]), (launch, source, options))
    return list(found.values())


def compiled(job: tuple[Launch, int]) -> Code:
    """Compile for one architecture and read the machine code."""
    launch, architecture = job
    source, options = specialised(launch, architecture)
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage, sass = (_tool("cuobjdump", option, cubin.name) for option in ("--dump-resource-usage", "-sass"))
    figures = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    if not figures:
        raise RuntimeError(f"cuobjdump must report the resources of {launch.case}, got {usage!r}")
    # Triton asks for its shared memory at the launch: the cubin knows the static part only.
    shared = max(figures["SHARED"], kernel.metadata.shared)
    threads = 32 * kernel.metadata.num_warps
    widths = [_widths(sass, instruction) for instruction in ("LDG", "STG")]
    sizes = figures["REG"], figures["STACK"], figures["LOCAL"], shared
    return Code(launch.case, launch.kernel.__name__, architecture, *sizes, threads, *widths)


def _tool(name: str, *arguments: str) -> str:
    path = f"{_TOOLS}{os.pathsep}{os.environ['PATH']}"  # cuobjdump starts nvdisasm, from beside it
    command = [str(_TOOLS / name), *arguments]
    return subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True).stdout


def _widths(sass: str, instruction: str) -> dict[int, int]:
    found: dict[int, int] = {}
    for modifiers in re.findall(rf"\b{instruction}\.E([.\w]*)", sass):
        bits = [int(part) for part in modifiers.split(".") if part in ("64", "128", "256")]
        small = {"U8": 1, "S8": 1, "U16": 2, "S16": 2}
        width = bits[0] // 8 if bits else next((small[m] for m in modifiers.split(".") if m in small), 4)
        found[width] = found.get(width, 0) + 1
    return found
