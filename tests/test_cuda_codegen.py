"""The CUDA kernels as the build has compiled them: no spills, enough occupancy, wide loads and stores."""

import shutil
import subprocess
from collections import Counter

import pytest
from simt.build import cuda_include

from bench import cuda_codegen
from bench.occupancy import MULTIPROCESSORS, occupancy, resident_blocks

KERNELS = [kernel for kernel in cuda_codegen.kernels() if kernel.architecture in MULTIPROCESSORS]
BUILT = cuda_codegen.LIBRARY.exists() and bool(KERNELS)

needs_build = pytest.mark.skipif(not BUILT, reason="needs the CUDA library and its objects in build/cuda: make install")
needs_cuobjdump = pytest.mark.skipif(cuda_codegen.cuobjdump() is None, reason="needs cuobjdump")

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
SASS = """
        /*0010*/  LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/  LDG.E.U16 R4, [R2.64] ;
        /*0030*/  LDG.E R4, [R2.64] ;
        /*0040*/  @P0 LDG.E.64 R4, [R2.64] ;
        /*0050*/  STG.E.128 desc[UR4][R2.64], R4 ;
        /*0060*/  LDGSTS.E.128 [R1], [R2.64] ;
        /*0070*/  LDS.128 R4, [R2] ;
"""


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt (binutils)")
def test_what_ptxas_says_is_read():
    first, second = cuda_codegen.parse(LOG)
    assert first == cuda_codegen.Kernel("k<float>", "_ZN3cgc4cuda1kIfEEvPT_", 90, 40, 24, 5, 10, 2048)
    assert second == cuda_codegen.Kernel("k<double>", "_ZN3cgc4cuda1kIdEEvPT_", 100, 12, 0, 0, 0, 0)
    assert first.occupancy == 0.75


def test_widths_of_instructions_are_read():
    found = cuda_codegen.count(SASS)
    assert found.loads == Counter({128: 1, 64: 1, 32: 1, 16: 1})
    assert found.stores == Counter({128: 1})


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


@needs_build
def test_all_kernels_were_compiled_for_every_architecture_asked_for():
    names = {kernel.name.split("<")[0] for kernel in KERNELS}
    assert {"forward_kernel", "backward_kernel"} <= names
    by_architecture = Counter(kernel.architecture for kernel in KERNELS)
    assert len(set(by_architecture.values())) == 1, by_architecture


@needs_build
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{kernel.name}-sm_{kernel.architecture}")
def test_no_kernel_spills_and_half_of_the_threads_fit(kernel):
    assert (kernel.spill_stores, kernel.spill_loads) == (0, 0)
    assert kernel.occupancy >= 0.5


@needs_build
@needs_cuobjdump
@pytest.mark.parametrize("architecture", sorted({kernel.architecture for kernel in KERNELS}))
def test_features_are_streamed_sixteen_bytes_at_a_time(architecture):
    streaming = {kernel.symbol: kernel.name for kernel in KERNELS if kernel.architecture == architecture}
    found = cuda_codegen.accesses(architecture, streaming)
    assert found.keys() == streaming.keys()
    for symbol, memory in found.items():
        assert memory.loads[128] > 0, streaming[symbol]
        if "backward" in streaming[symbol]:
            assert memory.stores[128] > 0, streaming[symbol]
