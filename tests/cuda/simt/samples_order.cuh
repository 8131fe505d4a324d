// Kernels whose blocks and launches depend on each other: launches in sequence, tickets, dependent launches.
#pragma once

#include "samples.cuh"

namespace samples {

// partial[block] = a block's share of the sum of x.
__device__ void partial_sum(const float* x, float* partial, int count) {
  __shared__ float slots[32];
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) sum += x[i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  float total = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) total += slots[i];
  partial[blockIdx.x] = total;
}

// y = x / sum of all partials, added in their order.
__device__ void divide(const float* x, const float* partial, float* y, int count) {
  float total = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) total += partial[i];
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) y[i] = x[i] / total;
}

// The two above, a launch each.
__global__ void shares_first(const float* x, float* partial, int count) { partial_sum(x, partial, count); }
__global__ void shares_second(const float* x, const float* partial, float* y, int count) {
  divide(x, partial, y, count);
}

__global__ void set_to_zero(unsigned* counters) { counters[threadIdx.x] = 0; }

// out = sum of x. Each warp leaves its share; the block that draws the last ticket adds them up. partial: a float for
// each warp of the grid; at most as many as a block has threads. counter: [2], zeros of the predecessor.
__global__ void sum_by_last(const float* x, float* partial, unsigned* counter, float* out, int count) {
  __shared__ bool last;
  simt::wait_for_predecessor();
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) sum += x[i];
  sum = warp_sum(sum);
  float* const share = partial + (blockIdx.x * blockDim.x + threadIdx.x) / 32;
#ifdef FAULT_TICKET_LATE
  if (threadIdx.x % 32 == 0 && threadIdx.x > 0) *share = sum;
#else
  if (threadIdx.x % 32 == 0) *share = sum;
#endif
#ifndef FAULT_TICKET_BARRIER
  __syncthreads();
#endif
  if (threadIdx.x == 0) {
#if defined(FAULT_TICKET)
    last = atomicAdd(counter, 1u) == gridDim.x - 1;
#elif defined(FAULT_TICKET_HOLDER)
    if (blockIdx.x > 0) simt::take_ticket(counter);
    last = blockIdx.x == 0;
#elif defined(FAULT_TICKET_FIRST)
    last = simt::take_ticket(counter) == 0;
#elif defined(FAULT_TICKET_COUNTERS)
    simt::take_ticket(counter + blockIdx.x % 2);
    last = blockIdx.x == gridDim.x - 1;
#else
    last = simt::take_ticket(counter) == gridDim.x - 1;
#endif
#ifdef FAULT_TICKET_LATE
    *share = sum;
#endif
  }
#ifdef FAULT_TICKET_PEEK
  if (threadIdx.x == 64) simt::gld(partial);
#endif
#ifndef FAULT_TICKET_NEWS
  __syncthreads();
#endif
  if (!last) return;
  const unsigned shares = gridDim.x * blockDim.x / 32;
  __shared__ float totals[32];
#ifdef FAULT_TICKET_STREAM
  const float total = warp_sum(threadIdx.x < shares ? simt::gld_stream(partial + threadIdx.x) : 0.0f);
#else
  const float total = warp_sum(threadIdx.x < shares ? partial[threadIdx.x] : 0.0f);
#endif
  if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x != 0) return;
  float all = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) all += totals[i];
  *out = all;
}

// Three launches, each of which depends on the one before: work [2, count] = (x^2, x^2 + i % 8 + block), y =
// the sum and x^2.
__global__ void chain_first(const float* x, float* work, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef FAULT_EARLY_INPUT
  const float value = i < count ? x[i] : 0;
  simt::wait_for_predecessor();
#else
  simt::wait_for_predecessor();
  const float value = i < count ? x[i] : 0;
#endif
  simt::release_successor();
  if (i < count) work[i] = value * value;
}
__global__ void chain_second(float* x, float* work, int count) {
  __shared__ float table[8];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (threadIdx.x < 8) table[threadIdx.x] = threadIdx.x + blockIdx.x;
  __syncthreads();
#ifdef FAULT_EARLY_WRITE
  if (i < count) x[i] = 0;
#endif
#if defined(FAULT_RELEASE)
  simt::release_successor();
  simt::wait_for_predecessor();
#elif defined(FAULT_WAIT_OF_ONE)
  if (threadIdx.x == 0) simt::wait_for_predecessor();
  __syncthreads();
#elif !defined(FAULT_WAIT) && !defined(FAULT_EARLY_READ)
  simt::wait_for_predecessor();
#endif
  const float square = i < count ? work[i] : 0;
#ifdef FAULT_EARLY_READ
  simt::wait_for_predecessor();
#endif
#if !defined(FAULT_WAIT_OF_ONE) && !defined(FAULT_WAIT)
  simt::release_successor();
#endif
  if (i < count) work[count + i] = square + table[i % 8];
}
__global__ void chain_third(const float* work, float* y, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const float square = i < count ? work[i] : 0;  // the second one has waited for the first
  simt::wait_for_predecessor();
  if (i < count) y[i] = square + work[count + i] + work[i];
}

}  // namespace samples
