// Crops: the matrices P, Q and K of both axes, and the products with them.
#pragma once

#include "resample_shared.cuh"

#include "../common/taps.h"

namespace cgc::CGC_ISA {

// to[i][j] += sum over pixels of left[pixel][i] * right[pixel][j], with `ones` in the place of right where it is a
// column of them. Four lanes share an entry.
__device__ __forceinline__ void add_products(Span left, Span right, bool ones, int pixels, int cells, Span to) {
  constexpr int lanes = 4;
  const int columns = ones ? 1 : cells, entries = cells * columns;
#pragma unroll 1
  for (int start = 0; start < entries; start += block_threads / lanes) {
    const int entry = start + thread() / lanes, i = entry / columns, j = entry - i * columns;
    double sum = 0;
    if (entry < entries) {
#pragma unroll 2
      for (int pixel = thread() % lanes; pixel < pixels; pixel += lanes) {
        sum += left[pixel * cells + i] * (ones ? 1.0 : right[pixel * cells + j]);
      }
    }
    sum = warp_sum(sum, lanes);
    if (entry < entries && thread() % lanes == 0) to[entry] += sum;
  }
}

__device__ __forceinline__ void add_stencil(const Stencil& stencil, double factor, Span row) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < stencil.count) row[stencil.cell[i]] += factor * stencil.share[i];
  }
}

// The pixels' rows of U and, of a crop, of R U, a pixel a thread. side: 0 for y, 1 for x, which alone may be flipped.
__device__ __forceinline__ void tabulate(const Axis& axis, const index_t* crop, int side, int first, int pixels,
                                         Span up, Span seen) {
  each(pixels, [&](int pixel) {
    const Span row = up + pixel * axis.cells, seen_row = seen + pixel * axis.cells;
#pragma unroll 1
    for (int i = 0; i < axis.cells; ++i) row[i] = seen_row[i] = 0;
    const Tap tap = upsample_tap(first + pixel, axis.size, axis.cells);
    row[tap.low] += 1 - tap.share;
    row[tap.high] += tap.share;
    if (crop == nullptr) return;
    const index_t start = simt::gld(crop + side), length = simt::gld(crop + 2 + side);
    const bool flip = side == 1 && simt::gld(crop + 4) != 0;
    const double ratio = double(length) / double(axis.size);
    const Tap source = crop_tap(first + pixel, axis.size, start, length, flip, ratio);
    const Tap low = upsample_tap(source.low, axis.size, axis.cells);
    const Tap high = upsample_tap(source.high, axis.size, axis.cells);
    add_stencil(blend(low, 1 - source.share, high, source.share), 1, seen_row);
  });
}

// The matrices of one sample, those of its crop only where `crops`; loops rather than calls, which keeps the code
// small.
__device__ __forceinline__ void prepare(const Resample& call, const ResampleShared& shared, int sample, bool crops) {
  const index_t* crop = crops ? call.crops + index_t(sample) * 5 : nullptr;
#pragma unroll 1
  for (int side = 0; side < 2; ++side) {
    const Axis axis = side == 0 ? shared.y : shared.x;
    const int most = shared.table_size / (2 * axis.cells);
    const Span up = shared.table, seen = up + most * axis.cells;
    each(axis_doubles(axis.cells), [&](int i) { axis.p[i] = 0; });  // they lie side by side
#pragma unroll 1
    for (int first = 0; first < axis.size; first += most) {
      const int pixels = minimum(most, axis.size - first);
      __syncthreads();
      tabulate(axis, crop, side, first, pixels, up, seen);
      __syncthreads();
#pragma unroll 1
      for (int matrix = crops ? 0 : 2; matrix < 4; ++matrix) {  // P, Q, K, sums
        add_products(matrix == 1 ? seen : up, matrix < 2 ? seen : up, matrix == 3, pixels, axis.cells,
                     axis.p + matrix * axis.cells * axis.cells);
      }
    }
    __syncthreads();
  }
}

// out = left m right^T, or left^T m right; m may be out. Ends with a barrier.
__device__ __forceinline__ void sandwich(const ResampleShared& shared, Span left, Span right, bool transposed, Span m,
                                         Span out) {
  const int height = shared.y.cells, width = shared.x.cells, count = height * width;
  const int left_row = transposed ? 1 : height, left_step = transposed ? height : 1;
  const int right_row = transposed ? 1 : width, right_step = transposed ? width : 1;
  each(count, [&](int p) {
    const int i = p / width, j = p - i * width;
    double sum = 0;
#pragma unroll 2
    for (int k = 0; k < height; ++k) sum += left[i * left_row + k * left_step] * m[k * width + j];
    shared.work[p] = sum;
  });
  __syncthreads();
  each(count, [&](int p) {
    const int i = p / width, j = p - i * width;
    double sum = 0;
#pragma unroll 2
    for (int k = 0; k < width; ++k) sum += shared.work[i * width + k] * right[j * right_row + k * right_step];
    out[p] = sum;
  });
  __syncthreads();
}

}  // namespace cgc::CGC_ISA
