// Kernels that test the emulator. Each FAULT_ macro plants one fault of the kind that it must find.
#pragma once

#include <simt.h>

namespace samples {

// out[block] = sum of x, tree in static shared memory.
__global__ void block_sum(const float* x, float* out, int count) {
  __shared__ float partial[256];
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) sum += x[i];
  partial[threadIdx.x] = sum;
#ifndef FAULT_BARRIER
  __syncthreads();
#endif
  for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) partial[threadIdx.x] += partial[threadIdx.x + step];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = partial[0];
}

__device__ __forceinline__ float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// y = x / root mean square of its row; bfloat16, eight at a time; sums in dynamic shared memory.
template <int Block>
__global__ void __launch_bounds__(Block)
    normalise_rows(const __nv_bfloat16* __restrict__ x, __nv_bfloat16* __restrict__ y, int columns) {
  SIMT_DYN_SHARED(float, partial);
  const uint4* row = reinterpret_cast<const uint4*>(x + size_t(blockIdx.x) * columns);
  float sum = 0;
  for (int i = threadIdx.x; i < columns / 8; i += Block) {
    const uint4 packed = simt::gld(row + i);
    const __nv_bfloat16* values = reinterpret_cast<const __nv_bfloat16*>(&packed);
    for (int k = 0; k < 8; ++k) sum += __bfloat162float(values[k]) * __bfloat162float(values[k]);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    const float total = warp_sum(threadIdx.x < Block / 32 ? partial[threadIdx.x] : 0.0f);
#ifdef FAULT_SLOT
    if (threadIdx.x == 0) partial[1] = total;  // while other lanes still read their slot
#else
    __syncwarp();
    if (threadIdx.x == 0) partial[0] = total;
#endif
  }
#ifdef FAULT_SLOT
  const float scale = rsqrtf(partial[1] / columns);
#else
  __syncthreads();
  const float scale = rsqrtf(partial[0] / columns);
#endif
  uint4* out = reinterpret_cast<uint4*>(y + size_t(blockIdx.x) * columns);
  for (int i = threadIdx.x; i < columns / 8; i += Block) {
    const uint4 packed = simt::gld(row + i);
    const __nv_bfloat16* values = reinterpret_cast<const __nv_bfloat16*>(&packed);
    uint4 result;
    __nv_bfloat16* results = reinterpret_cast<__nv_bfloat16*>(&result);
    for (int k = 0; k < 8; ++k) results[k] = __float2bfloat16(__bfloat162float(values[k]) * scale);
    simt::gst(out + i, result);
  }
}

// bins[value % 16] += 1 for every value.
__global__ void histogram(const int* values, int* bins, int count) {
  __shared__ int own[16];
  if (threadIdx.x < 16) own[threadIdx.x] = 0;
  __syncthreads();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) {
#ifdef FAULT_ATOMIC
    own[values[i] & 15] += 1;
#else
    atomicAdd(&own[values[i] & 15], 1);
#endif
  }
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&bins[threadIdx.x], own[threadIdx.x]);
}

// y = x, reversed in each warp through shared memory.
__global__ void reverse_warps(const int* x, int* y) {
  __shared__ int exchanged[64];
  const unsigned i = threadIdx.x;
  exchanged[i] = x[i];
#ifndef FAULT_WARP_BARRIER
  __syncwarp();
#endif
#ifdef FAULT_SHARED_END
  y[i] = exchanged[i == 0 ? 64 : i ^ 31];
#else
  y[i] = exchanged[i ^ 31];
#endif
}

// y[i] = x[i * stride]: with a stride of 1 every sector is used, with 8 an eighth of it.
__global__ void gather(const float* x, float* y, int count, int stride) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifndef FAULT_END
  if (i < count)
#endif
    y[i] = x[i * stride];
}

// y[i] = the sum of column i of x [rounds, 64], the first 36 of which are read by one warp: four of its lanes run once
// more than the others between two barriers.
__global__ void columns(const float* x, float* y, int rounds) {
  float sums[2] = {};
  for (int round = 0; round < rounds; ++round) {
    for (int i = threadIdx.x; i < 36; i += 32) sums[i / 32] += x[round * 64 + i];
    __syncthreads();
  }
  for (int i = threadIdx.x; i < 36; i += 32) y[i] = sums[i / 32];
}

// y[i] = twice x[i].
__global__ void twice_half(const __half* x, __half* y) {
  y[threadIdx.x] = __float2half(2.0f * __half2float(x[threadIdx.x]));
}
__global__ void twice_bfloat16(const __nv_bfloat16* x, __nv_bfloat16* y) {
  y[threadIdx.x] = __float2bfloat16(2.0f * __bfloat162float(x[threadIdx.x]));
}

// For each thread of a block of 64: ballot, count, shuffles over half warps, sum over eight lanes.
__global__ void warp_operations(int* out) {
  const int lane = threadIdx.x & 31;
  int* mine = out + 6 * threadIdx.x;
  mine[0] = int(__ballot_sync(0xffffffffu, lane % 3 == 0));
  mine[1] = __syncthreads_count(threadIdx.x % 2);
  mine[2] = lane < 16 ? __shfl_down_sync(0x0000ffffu, lane, 4, 16) : __shfl_up_sync(0xffff0000u, lane, 4, 16);
  mine[3] = __shfl_sync(0xffffffffu, lane, 5, 8);
  int sum = lane;
  for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step, 8);
  mine[4] = sum;
  mine[5] = __syncthreads_and(threadIdx.x < 64) + 2 * __syncthreads_or(threadIdx.x == 63) +
            4 * __any_sync(0xffffffffu, lane == 31) + 8 * __all_sync(0xffffffffu, lane < 31);
}

// y = x, each 16 bytes of which are read once.
__global__ void copy_stream(const uint4* x, uint4* y, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) simt::gst(y + i, simt::gld_stream(x + i));
}

// Threads that a barrier or a warp operation waits for in vain.
__global__ void stuck_at_barrier(int threads) {
  if (int(threadIdx.x) < threads) __syncthreads();
  if (int(threadIdx.x) >= threads) __syncwarp(0xffffffffu);
}
__global__ void bad_shuffle(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, int(threadIdx.x), 20);
}

}  // namespace samples
