"""The CUDA kernels as the build has compiled them, held to bounds: loads in flight, instructions, barriers, spills."""

import shutil
import subprocess
from collections import Counter
from typing import NamedTuple

import pytest

from bench import codegen_page, cuda_codegen, sass
from bench.cuda_codegen import Kernel, Usage
from bench.occupancy import occupancy, resident_blocks
from tests.cuda.simt.build import cuda_include


class Bound(NamedTuple):
    """What holds for all kernels of one name; None where nothing is asked."""

    instructions_a_load: float | None = None  # at most, of those that can load 16 bytes at a time
    in_flight: int | None = None  # at least, 16-byte loads of the same
    barriers: int | None = None  # at most
    float32_double: int | None = None  # at most, calculations in double where none of the template's types is
    float32_tensor: int | None = None  # at least, products on tensor cores, likewise


BOUNDS = {
    "cam_rows": Bound(instructions_a_load=50, in_flight=4),  # channels_last
    "cam_flat": Bound(instructions_a_load=80, in_flight=4),  # contiguous
    "cam_rows_backward": Bound(instructions_a_load=50, in_flight=4),
    "cam_flat_backward": Bound(instructions_a_load=80, in_flight=4),
    "crop_matrices": Bound(float32_double=0, float32_tensor=1),
    "resample_forward": Bound(barriers=8, float32_double=0),
    "contrast_forward": Bound(float32_tensor=1),
    "contrast_backward": Bound(float32_tensor=1),
    "cgc_backward": Bound(float32_tensor=1),
}
VECTOR = 2  # where the template of a cam kernel has the elements of a vector: 1 if it loads them one by one
LEAST_OCCUPANCY = 0.5  # of the same kernels, which stream

needs_build = pytest.mark.skipif(bool(cuda_codegen.missing()), reason=cuda_codegen.missing())

LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3cgc4cuda1kIfEEvPT_' for 'sm_90'
ptxas info    : Function properties for _ZN3cgc4cuda1kIfEEvPT_
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 24 bytes cumulative stack size, 2048 bytes smem
ptxas info    : Function properties for _ZN3cgc4cuda6helperEv
    8 bytes stack frame, 1 bytes spill stores, 2 bytes spill loads
ptxas info    : Compiling entry function '_ZN3cgc4cuda1kIdEEvPT_' for 'sm_100'
ptxas info    : Function properties for _ZN3cgc4cuda1kIdEEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers
"""
USAGE = Usage("_ZN3cgc4cuda1kIfEEvPT_", 90, registers=40, stack=24, spill_stores=5, spill_loads=10, shared=2048)
NOTHING = sass.Facts(0, Counter(), Counter(), in_flight=0, barriers=0, tensor=0, double=0, local=0)


def test_what_ptxas_says_is_read():
    assert cuda_codegen.parse(LOG) == [USAGE, Usage("_ZN3cgc4cuda1kIdEEvPT_", 100, 12, 0, 0, 0, 0)]


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt (binutils)")
@pytest.mark.parametrize(
    ("symbol", "name", "arguments"),
    [
        ("_ZN3cgc4cuda4loopEPf", "loop", []),
        (
            "_ZN3cgc4cuda8cam_rowsI13__nv_bfloat16ffLi8ELb1EEEvNS0_3CamE",
            "cam_rows<__nv_bfloat16, float, float, 8, true>",
            ["__nv_bfloat16", "float", "float", "8", "true"],
        ),
        ("_ZN3cgc4cuda12_GLOBAL__N_18cam_rowsI6__halfLNS_9WeightingE2EEEvv", "cam_rows<__half, 2>", ["__half", "2"]),
    ],
)
def test_names_are_short(symbol, name, arguments):
    assert cuda_codegen.demangle([symbol]) == {symbol: name}
    kernel = Kernel(name, USAGE, 256, NOTHING)
    assert (kernel.base, kernel.arguments) == (name.partition("<")[0], arguments)


def test_occupancy_is_that_of_the_kernels_own_block():
    assert Kernel("k", USAGE, 256, NOTHING).occupancy == 0.75
    assert Kernel("k", USAGE, 1024, NOTHING).occupancy == 0.5


def test_a_row_holds_every_architecture():
    code = NOTHING._replace(instructions=100, loads=Counter({128: 4, 32: 1}), in_flight=4)
    ampere = Kernel("k<float>", USAGE._replace(architecture=80), 256, code)
    hopper = Kernel("k<float>", USAGE, 256, code._replace(in_flight=8, barriers=2))
    cells = cuda_codegen.rows([[ampere], [hopper]])[-1].strip("| ").split(" | ")
    found = dict(zip(["kernel", *cuda_codegen.COLUMNS], cells, strict=True))
    assert found["kernel"] == "`k<float>`"
    assert found["threads"] == "256"
    assert found["in flight"] == "4 / 8"
    assert found["barriers"] == "0 / 2"
    assert found["instructions a 16-byte load"] == "25"
    assert found["loads"] == "4 + 1"
    assert found["spilled"] == "15"


def test_occupancy_by_hand():
    assert occupancy(32, 0, 256, 80) == 1.0
    assert occupancy(64, 0, 256, 80) == 0.5
    assert occupancy(65, 0, 256, 90) == 0.375
    assert occupancy(32, 100_000, 256, 80) == 0.125
    assert resident_blocks(255, 0, 1024, 90) == 0
    assert resident_blocks(32, 163 * 1024 + 1, 32, 80) == 0
    with pytest.raises(ValueError, match="threads must be 1 to 1024, got 0"):
        occupancy(32, 0, 0, 80)


# NVIDIA's own calculation; prints what it gives for the same questions.
CALCULATOR = """
#include <initializer_list>
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
  for (int sm : {80, 90, 100})
    for (int registers = 16; registers <= 255; registers += 7)
      for (int threads : {1, 32, 96, 200, 256, 512, 1024})
        for (int shared : {0, 1000, 20000, 48 * 1024, 163 * 1024}) {
          cudaOccDeviceProp device;
          device.computeMajor = sm / 10;
          device.computeMinor = 0;
          device.maxThreadsPerBlock = 1024;
          device.maxThreadsPerMultiprocessor = 2048;
          device.regsPerBlock = device.regsPerMultiprocessor = 65536;
          device.warpSize = 32;
          device.numSms = 1;
          device.sharedMemPerBlock = 48 * 1024;
          device.sharedMemPerMultiprocessor = (sm == 80 ? 164 : 228) * 1024;
          device.sharedMemPerBlockOptin = device.sharedMemPerMultiprocessor - 1024;
          device.reservedSharedMemPerBlock = 1024;
          cudaOccFuncAttributes kernel;
          kernel.maxThreadsPerBlock = 1024;
          kernel.numRegs = registers;
          kernel.sharedSizeBytes = 0;
          kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
          kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
          kernel.maxDynamicSharedSizeBytes = device.sharedMemPerBlockOptin;
          kernel.numBlockBarriers = 1;
          cudaOccDeviceState state;
          state.carveoutConfig = 100;
          cudaOccResult result;
          cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
          std::printf("%d %d %d %d %d\\n", registers, shared, threads, sm, result.activeBlocksPerMultiprocessor);
        }
}
"""


@pytest.mark.skipif(
    shutil.which("g++") is None or cuda_include() is None or not (cuda_include() / "cuda_occupancy.h").exists(),
    reason="needs g++ and cuda_occupancy.h of a CUDA toolkit",
)
def test_occupancy_is_what_nvidia_calculates(tmp_path):
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    program = str(tmp_path / "calculator")
    subprocess.run(["g++", "-w", "-isystem", cuda_include(), f"{program}.cpp", "-o", program], check=True)
    lines = subprocess.check_output([program], text=True).splitlines()
    assert len(lines) == 3 * 35 * 7 * 5
    for line in lines:
        *question, expected = map(int, line.split())
        assert resident_blocks(*question) == expected, question


def built(architecture, base=None):
    """Kernels of one architecture, all or those of one name."""
    if not cuda_codegen.kernels(architecture):
        pytest.skip(f"the library was not built for sm_{architecture}")
    found = [kernel for kernel in cuda_codegen.kernels(architecture) if base in (None, kernel.base)]
    assert found, f"no kernel is called {base}"
    return found


def hold(values, *, least=float("-inf"), most=float("inf")):
    """Asserts that the figures, by name of a kernel, are within bounds; names those that are not."""
    assert values
    outside = [f"{name}: {value:g}" for name, value in values.items() if not least <= value <= most]
    assert not outside, "\n".join([f"not in [{least}, {most}]:", *outside])


def streaming(architecture, base):
    """Kernels that load 16 bytes at a time."""
    return [kernel for kernel in built(architecture, base) if int(kernel.arguments[VECTOR]) > 1]


def float32(architecture, base):
    """Kernels of float32: none of the template's types is double."""
    found = [kernel for kernel in built(architecture, base) if "double" not in kernel.name]
    assert found, f"no {base} is without double"
    return found


def asked(field):
    """Names for which a bound is given."""
    return [base for base, bound in BOUNDS.items() if getattr(bound, field) is not None]


# Of one architecture in CI: to disassemble the library takes seconds of each.
every_architecture = pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(a, id=f"sm_{a}", marks=[pytest.mark.slow] * (a != codegen_page.ARCHITECTURE))
        for a in cuda_codegen.ARCHITECTURES
    ],
)


@needs_build
@every_architecture
def test_the_library_holds_the_kernels_of_the_table(architecture):
    assert {kernel.base for kernel in built(architecture)} >= set(BOUNDS)


@needs_build
@pytest.mark.slow
def test_every_architecture_has_the_same_kernels():
    names = {a: [kernel.name for kernel in cuda_codegen.kernels(a)] for a in cuda_codegen.ARCHITECTURES}
    present = [found for found in names.values() if found]
    assert present
    assert all(found == present[0] for found in present)


@needs_build
def test_ptxas_spills_nothing_on_any_architecture():
    said = [usage for log in cuda_codegen.LOGS.glob("*.cu-*.log") for usage in cuda_codegen.parse(log.read_text())]
    hold({f"{u.symbol}, sm_{u.architecture}": u.spill_stores + u.spill_loads for u in said}, most=0)


@needs_build
@every_architecture
def test_no_kernel_spills(architecture):
    spilled = {k.name: k.usage.spill_stores + k.usage.spill_loads + k.code.local for k in built(architecture)}
    hold(spilled, most=0)


@needs_build
@every_architecture
@pytest.mark.parametrize("base", asked("in_flight"))
def test_loads_in_flight(architecture, base):
    """By Little's law a multiprocessor needs 20 to 40 KB on their way; a load a thread is 16 KB at half occupancy."""
    found = {kernel.name: kernel.code.in_flight for kernel in streaming(architecture, base)}
    hold(found, least=BOUNDS[base].in_flight)


@needs_build
@every_architecture
@pytest.mark.parametrize("base", asked("instructions_a_load"))
def test_instructions_a_load(architecture, base):
    found = {kernel.name: kernel.code.instructions_a_load for kernel in streaming(architecture, base)}
    hold(found, most=BOUNDS[base].instructions_a_load)


@needs_build
@every_architecture
@pytest.mark.parametrize("base", asked("in_flight"))
def test_half_of_the_threads_fit(architecture, base):
    found = {kernel.name: kernel.occupancy for kernel in streaming(architecture, base)}
    hold(found, least=LEAST_OCCUPANCY)


@needs_build
@every_architecture
@pytest.mark.parametrize("base", asked("barriers"))
def test_barriers(architecture, base):
    found = {kernel.name: kernel.code.barriers for kernel in built(architecture, base)}
    hold(found, most=BOUNDS[base].barriers)


@needs_build
@every_architecture
@pytest.mark.parametrize("base", asked("float32_double"))
def test_float32_does_not_calculate_in_double(architecture, base):
    found = {kernel.name: kernel.code.double for kernel in float32(architecture, base)}
    hold(found, most=BOUNDS[base].float32_double)


@needs_build
@every_architecture
@pytest.mark.parametrize("base", asked("float32_tensor"))
def test_float32_uses_tensor_cores(architecture, base):
    found = {kernel.name: kernel.code.tensor for kernel in float32(architecture, base)}
    hold(found, least=BOUNDS[base].float32_tensor)


@needs_build
def test_the_page_shows_the_library():
    built(codegen_page.ARCHITECTURE)
    shown, compiler = codegen_page.shown("cuda"), cuda_codegen.compiler(codegen_page.ARCHITECTURE)
    if codegen_page.compiler(shown) != compiler:
        pytest.skip(f"docs/codegen.md shows code of {codegen_page.compiler(shown)}, the library is made by {compiler}")
    assert cuda_codegen.section() == shown, "docs/codegen.md must list what the compiler gives; run: make codegen"
