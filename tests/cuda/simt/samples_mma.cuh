// Products of small matrices by mma.sync.
#pragma once

#include <simt.h>

namespace samples {

// c [16, 8] of each warp = a [16, depth] b [depth, 8], in tf32 or, split into parts that tf32 holds, nearly in float32.
template <bool Split>
__global__ void multiply(const float* a, const float* b, float* c, int depth) {
  const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  const int group = lane / 4, place = lane % 4;
  a += warp * 16 * depth, b += warp * depth * 8, c += warp * 16 * 8;
  float sums[4] = {};
  for (int k = 0; k < depth; k += 8) {
    unsigned as[4], bs[2], a_rests[4], b_rests[2];
    const auto split = [](float x, unsigned& high, unsigned& rest) {
      high = __float_as_uint(x);
#ifndef FAULT_SPLIT
      if (Split) high &= 0xffffe000u;
#endif
      rest = __float_as_uint(x - __uint_as_float(high));
    };
    for (int i = 0; i < 4; ++i) {
#ifdef FAULT_FRAGMENT
      split(a[(group + i / 2 * 8) * depth + k + place + i % 2 * 4], as[i], a_rests[i]);
#else
      split(a[(group + i % 2 * 8) * depth + k + place + i / 2 * 4], as[i], a_rests[i]);
#endif
    }
    for (int i = 0; i < 2; ++i) split(b[(k + place + i * 4) * 8 + group], bs[i], b_rests[i]);
    if (Split) simt::mma_tf32(sums, as, b_rests);
    if (Split) simt::mma_tf32(sums, a_rests, bs);
    simt::mma_tf32(sums, as, bs);
  }
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + place * 2 + i % 2] = sums[i];
}

// c [8, 8] += a [8, depth] b [depth, 8]; one warp.
__global__ void multiply_double(const double* a, const double* b, double* c, int depth) {
  const int group = threadIdx.x / 4, place = threadIdx.x % 4;
  double sums[2] = {c[group * 8 + place * 2], c[group * 8 + place * 2 + 1]};
  for (int k = 0; k < depth; k += 4) {
    simt::mma_f64(sums, a[group * depth + k + place], b[(k + place) * 8 + group]);
  }
  for (int i = 0; i < 2; ++i) c[group * 8 + place * 2 + i] = sums[i];
}

// An mma by a part of a warp.
__global__ void multiply_by_half(double* c) {
  double sums[2] = {};
  if (threadIdx.x < 16) simt::mma_f64(sums, 1.0, 1.0);
  c[threadIdx.x] = sums[0];
}

}  // namespace samples
