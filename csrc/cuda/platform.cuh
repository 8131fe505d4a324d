// What every kernel of this folder needs: threads, vectors, sums, and the types of the features.
//
// Kernels take one structure by value, run in blocks of 256 threads and loop over their work with the grid's stride, so
// that any number of blocks gives the same bits. All shared memory is dynamic; a phase carves it anew.
#pragma once

#ifndef CGC_ISA
#define CGC_ISA cuda
#endif

#include "../common/calls.h"
#include "../common/gradients.h"
#include "../common/loss.h"
#include "../common/platform.h"
#include "simt.h"

namespace cgc::CGC_ISA {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

constexpr int block_threads = 256, warp_threads = 32, block_warps = block_threads / warp_threads;
constexpr int largest_side = 32, largest_map = largest_side * largest_side;
constexpr unsigned all_lanes = 0xffffffffu;

// Registers are what the kernels are short of: the thread's number is read again wherever it is wanted, and what
// follows from a fresh() copy of a number is computed again rather than kept from one phase to the next.
#ifdef __CUDA_ARCH__
__device__ __forceinline__ int thread() {
  int number;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
  return number;
}
__device__ __forceinline__ int fresh(int number) {
  asm volatile("" : "+r"(number));
  return number;
}
template <class T>
__device__ __forceinline__ T* fresh(T* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}
#else
__device__ __forceinline__ int thread() { return int(threadIdx.x); }
template <class T>
__device__ __forceinline__ T fresh(T number) {
  return number;
}
#endif
__device__ __forceinline__ int lane() { return thread() % warp_threads; }
__device__ __forceinline__ int warp() { return thread() / warp_threads; }

// visit(i) for every i in [0, count), one a thread; not unrolled, since these loops are short and registers are few.
template <class F>
__device__ __forceinline__ void each(int count, F&& visit) {
#pragma unroll 1
  for (int i = thread(); i < count; i += block_threads) visit(i);
}

// ---- Storage types: computed with in float or double.

__device__ __forceinline__ float load(float x) { return x; }
__device__ __forceinline__ double load(double x) { return x; }
__device__ __forceinline__ float load(bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float load(float16 x) { return __half2float(x); }

template <class T>
struct Rounded {
  template <class Acc>
  static __device__ T from(Acc x) {
    return T(x);
  }
};
template <>
struct Rounded<bfloat16> {
  static __device__ bfloat16 from(float x) { return __float2bfloat16(x); }
};
template <>
struct Rounded<float16> {
  static __device__ float16 from(float x) { return __float2half(x); }
};

// V values that lie side by side, aligned to 16 bytes unless V is 1.
template <class T, int V>
struct alignas(V == 1 ? alignof(T) : 16) Pack {
  T value[V];
};

template <int V, class T>
__device__ __forceinline__ Pack<T, V> read(const T* from) {
  Pack<T, V> pack;
  if constexpr (V == 1) {
    pack.value[0] = simt::gld(from);
  } else {
    static_assert(sizeof(pack) % 16 == 0);
#pragma unroll
    for (int i = 0; i < int(sizeof(pack) / 16); ++i) {
      reinterpret_cast<uint4*>(pack.value)[i] = simt::gld(reinterpret_cast<const uint4*>(from) + i);
    }
  }
  return pack;
}

template <int V, class T>
__device__ __forceinline__ void write(T* to, const Pack<T, V>& pack) {
  if constexpr (V == 1) {
    simt::gst(to, pack.value[0]);
  } else {
    static_assert(sizeof(pack) % 16 == 0);
#pragma unroll
    for (int i = 0; i < int(sizeof(pack) / 16); ++i) {
      simt::gst(reinterpret_cast<uint4*>(to) + i, reinterpret_cast<const uint4*>(pack.value)[i]);
    }
  }
}

// ---- Sums in a fixed order, the same on every thread that takes part.

// Over groups of `width` lanes, a power of two.
template <class T>
__device__ __forceinline__ T warp_sum(T value, int width = warp_threads) {
  for (int distance = width / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(all_lanes, value, distance);
  }
  return value;
}

// Over the block. scratch: shared, one number a warp.
__device__ __forceinline__ double block_sum(double value, double* scratch) {
  value = warp_sum(value);
  __syncthreads();  // an earlier sum may still be read
  if (lane() == 0) scratch[warp()] = value;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < block_warps; ++i) sum += scratch[i];
  return sum;
}

}  // namespace cgc::CGC_ISA
