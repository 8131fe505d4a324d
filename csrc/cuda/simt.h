// What kernels include in place of the CUDA headers. nvcc sees the real ones; g++ sees the emulator of tests/simt,
// which executes the same sources on a CPU.
//
//   SIMT_LAUNCH(kernel, grid, block, dynamic_bytes, stream, args...)       -> 0 or the error of the launch
//   SIMT_LAUNCH_COOP(kernel, grid, block, dynamic_bytes, stream, args...)  the same for a grid that may grid.sync()
//   SIMT_DYN_SHARED(T, name)                                               T* name: the dynamic shared memory
//   simt::gld(p), simt::gst(p, value)                                      one access of exactly sizeof(T) bytes
#pragma once

#ifdef __CUDACC__

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <tuple>

namespace simt {

template <class... Parameters, class... Arguments>
cudaError_t launch_cooperative(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                               Arguments... arguments) {
  std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  return std::apply(
      [&](auto&... value) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))...};
        return cudaLaunchCooperativeKernel(reinterpret_cast<void*>(kernel), grid, block, pointers, shared, stream);
      },
      values);
}

template <class T>
__device__ __forceinline__ T gld(const T* source) {
  return *source;
}

template <class T>
__device__ __forceinline__ void gst(T* target, const T& value) {
  *target = value;
}

}  // namespace simt

#define SIMT_LAUNCH(kernel, grid, block, shared, stream, ...) \
  (kernel<<<(grid), (block), (shared), (cudaStream_t)(stream)>>>(__VA_ARGS__), cudaGetLastError())
#define SIMT_LAUNCH_COOP(kernel, grid, block, shared, stream, ...) \
  simt::launch_cooperative(kernel, (grid), (block), (shared), (cudaStream_t)(stream), __VA_ARGS__)
#define SIMT_DYN_SHARED(T, name)                                       \
  extern __shared__ __align__(16) unsigned char simt_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(simt_dynamic_shared)

#else

#include "emulator.h"

#endif
