// What kernels include in place of the CUDA headers, by the include path: the emulator of tests/cuda/simt, which
// executes the same sources on a CPU, has a file of this name.
//
//   simt::launch(dependent, kernel, grid, block, dynamic_bytes, stream, args...)
//                                       -> 0 or the error, for error_text; dependent: may overlap its predecessor
//   SIMT_DYN_SHARED(T, name)            T* name: the dynamic shared memory
//   simt::wait_for_predecessor()        in every thread, until it may touch what earlier kernels of the stream touch
//   simt::release_successor()           after the own wait: lets a dependent launch start
//   simt::gld(p), gst(p, value)         one access of exactly sizeof(T) bytes
//   simt::gld_stream(p)                 the same of 16 bytes that are read once, of what no block of the launch writes
//   simt::take_ticket(counter)          by one thread after a barrier; the block that draws the last ticket sees, after
//                                       another barrier, what all blocks did before theirs
//   simt::mma_tf32(d, a, b)             d[16, 8] += a[16, 8] b[8, 8] by a warp, in the fragments of PTX
//   simt::mma_f64(d, a, b)              d[8, 8] += a[8, 4] b[4, 8]
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace simt {

// Whether the code that runs on the current device was compiled with the wait. Asked of one kernel and remembered while
// the thread stays with the device: one library's kernels are compiled alike.
inline bool waits(const void* kernel) {
  static thread_local int known = -1;
  static thread_local cudaFuncAttributes attributes{};
  int device = -1;
  if (cudaGetDevice(&device) == cudaSuccess && device != known) {
    known = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess ? device : -1;
    if (known < 0) cudaGetLastError();  // the launch will tell
  }
  return device >= 0 && device == known && attributes.ptxVersion >= 90;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(bool dependent, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, void* stream,
                   const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  const bool overlaps = dependent && waits(reinterpret_cast<const void*>(kernel));
  const cudaLaunchConfig_t config{grid, block, shared, static_cast<cudaStream_t>(stream), &attribute, overlaps};
  cudaError_t error = cudaSuccess;
  if (shared > 48 * 1024) {  // more must be asked for; always for the same, since other threads launch too
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 99 * 1024);
  }
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) cudaGetLastError();  // it is returned; the next caller must not meet it
  return error;
}

inline const char* error_text(int error) { return cudaGetErrorString(cudaError_t(error)); }

__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

__device__ __forceinline__ void release_successor() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

template <class T>
__device__ __forceinline__ T gld(const T* source) {
  return *source;
}

template <class T>
__device__ __forceinline__ void gst(T* target, const T& value) {
  *target = value;
}

__device__ __forceinline__ uint4 gld_stream(const uint4* source) {
  uint4 words;
  // Volatile: it must not move before the wait.
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(__cvta_generic_to_global(source)));
  return words;
}

__device__ __forceinline__ unsigned take_ticket(unsigned* counter) {
  __threadfence();
  const unsigned ticket = atomicAdd(counter, 1u);
  __threadfence();
  return ticket;
}

// Of the inputs the ten highest bits of the mantissa count.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_f64(double (&d)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(d[0]), "+d"(d[1])
               : "d"(a), "d"(b));
}

}  // namespace simt

#define SIMT_DYN_SHARED(T, name)                                       \
  extern __shared__ __align__(16) unsigned char simt_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(simt_dynamic_shared)
