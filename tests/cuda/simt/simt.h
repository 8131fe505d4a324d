// A CUDA device on one CPU thread, for g++: what <cuda_runtime.h> and csrc/cuda/simt.h give a kernel under nvcc.
//
// Every CUDA thread is a fiber. Barriers and shuffles switch fibers, so that any order of threads can be played, again
// and again from one seed. NVIDIA's own headers convert bfloat16 and float16.
//
// `__shared__` is plain static storage, which the linker gathers in the zero-initialised data of the kernels' library:
// that whole range is the static shared memory, filled with 0xFF (NaN) when a block starts and exchanged when another
// block runs in between. So kernels' sources keep no other mutable statics.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include "runtime.h"

// NVIDIA's host headers define some of these, with attributes that only nvcc knows.
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__  // libstdc++ spells __attribute__((__noinline__))
#define __launch_bounds__(...)
#define __grid_constant__
#ifndef __restrict__
#define __restrict__ __restrict
#endif

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// Set by the linker; hidden, so that each library finds its own.
extern "C" __attribute__((visibility("hidden"))) char __ehdr_start[], __bss_start[], _end[];

namespace simt {

template <class Kernel, class... Arguments>
int launch(bool dependent, Kernel kernel, dim3 grid, dim3 block, std::size_t dynamic_bytes, void* stream,
           Arguments... arguments) {
  auto thread = [=] { kernel(arguments...); };
  const auto body = [](void* context) { (*static_cast<decltype(thread)*>(context))(); };
  const auto number = reinterpret_cast<std::uintptr_t>(stream);
  return run(
      {grid, block, dynamic_bytes, dependent, number, body, &thread, sizeof(thread), __ehdr_start, __bss_start, _end});
}

inline const char* error_text(int) { return "the emulator refused the launch, or it did not end"; }

}  // namespace simt

#define SIMT_DYN_SHARED(T, name) T* name = static_cast<T*>(simt::dynamic_shared())

#include "intrinsics.h"
