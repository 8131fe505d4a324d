// Warps by a 3 x 3 matrix: a sweep over the pixels of the view, and its adjoint.
#pragma once

#include "resample_shared.cuh"

#include "../common/taps.h"

namespace cgc::CGC_ISA {

// One row of pixels in the table: along y the sampled values times their shares, along x the shares.
struct WarpTable {
  Span seen_y, adjoint_y, from_x, up_x;  // [pixels, cells]
};

// The upsampled map of the augmented view.
__device__ __forceinline__ double upsampled(const ResampleShared& shared, int row, const Tap& x) {
  const Tap y = upsample_tap(row, shared.y.size, shared.y.cells);
  const Span low = shared.augmented + y.low * shared.x.cells, high = shared.augmented + y.high * shared.x.cells;
  return (1 - y.share) * ((1 - x.share) * low[x.low] + x.share * low[x.high]) +
         y.share * ((1 - x.share) * high[x.low] + x.share * high[x.high]);
}

// What one augmented pixel takes from the original's map, and the upsampled map of the augmented view there.
__device__ __forceinline__ void sample_pixel(const ResampleShared& shared, const double* inverse, int row, int column,
                                             int slot, bool whole, const WarpTable& table) {
  const Axis &y = shared.y, &x = shared.x;
  const Span seen_y = table.seen_y + slot * y.cells, adjoint_y = table.adjoint_y + slot * y.cells;
  const Span from_x = table.from_x + slot * x.cells, up_x = table.up_x + slot * x.cells;
#pragma unroll 1
  for (int i = 0; i < y.cells; ++i) seen_y[i] = adjoint_y[i] = 0;
#pragma unroll 1
  for (int i = 0; i < x.cells; ++i) from_x[i] = up_x[i] = 0;
  double at_x, at_y;
  if (!warp_source(inverse, column, row, at_x, at_y)) return;
  int left, right;  // columns that the pixel takes from
  {
    Stencil stencil;
    const auto up = [&](cell_t pixel) { return upsample_tap(pixel, x.size, x.cells); };
    if (!warp_stencil(at_x, x.size, up, stencil)) return;
    add_stencil(stencil, 1, from_x);
    left = stencil.cell[0];
    right = stencil.count == 2 ? stencil.cell[1] : stencil.count == 3 ? stencil.cell[2] : stencil.cell[3];
  }
  Stencil stencil;
  const auto up = [&](cell_t pixel) { return upsample_tap(pixel, y.size, y.cells); };
  if (!warp_stencil(at_y, y.size, up, stencil)) return;
  const Tap tap_x = upsample_tap(column, x.size, x.cells);
  add_stencil(stencil, upsampled(shared, row, tap_x), adjoint_y);
  if (!whole) return;
  double seen = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i >= stencil.count) continue;
    const Span cells = shared.original + stencil.cell[i] * x.cells;
    double along = 0;
#pragma unroll 1
    for (int j = left; j <= right; ++j) along += from_x[j] * cells[j];
    seen += stencil.share[i] * along;
  }
  add_stencil(stencil, seen, seen_y);
  up_x[tap_x.low] += seen * (1 - tap_x.share);
  up_x[tap_x.high] += seen * tap_x.share;
}

// image = U^T T(U o U^T) U, work = (T U)^T (T U) o, both only if `whole`, and out = (T U)^T U a U^T. Cells have
// owners, so nothing is added out of order; where cells are fewer than threads, several share one and are summed last.
__device__ __forceinline__ void sweep(const Resample& call, const ResampleShared& shared, int sample, bool whole) {
  const Axis &y = shared.y, &x = shared.x;
  const int cells = y.cells * x.cells, sharers = maximum(1, block_threads / cells);
  const int pixels = shared.table_size / pixel_doubles(y.cells, x.cells);
  const WarpTable table{shared.table, shared.table + pixels * y.cells, shared.table + 2 * pixels * y.cells,
                        shared.table + pixels * (2 * y.cells + x.cells)};
  each(sharers * cells, [&](int i) { shared.image[i] = shared.work[i] = shared.out[i] = 0; });
#pragma unroll 1
  for (int row = 0; row < y.size; ++row) {
    const Tap tap = upsample_tap(row, y.size, y.cells);
#pragma unroll 1
    for (int first = 0; first < x.size; first += pixels) {
      const int count = minimum(pixels, x.size - first);
      __syncthreads();
      each(count, [&](int slot) {
        sample_pixel(shared, call.inverses + index_t(sample) * 9, row, first + slot, slot, whole, table);
      });
      __syncthreads();
      each(sharers * cells, [&](int own) {
        const int sharer = own / cells, cell = own - sharer * cells, i = cell / x.cells, j = cell - i * x.cells;
        double seen = 0, gram = 0, adjoint = 0;
#pragma unroll 1
        for (int slot = sharer; slot < count; slot += sharers) {
          const double share = table.from_x[slot * x.cells + j];
          adjoint += share * table.adjoint_y[slot * y.cells + i];
          gram += share * table.seen_y[slot * y.cells + i];
          seen += table.up_x[slot * x.cells + j];
        }
        const double up = (tap.low == i ? 1 - tap.share : 0) + (tap.high == i ? tap.share : 0);
        shared.image[own] += up * seen;
        shared.work[own] += gram;
        shared.out[own] += adjoint;
      });
    }
  }
  __syncthreads();
  each(cells, [&](int cell) {
#pragma unroll 1
    for (int sharer = 1; sharer < sharers; ++sharer) {
      shared.image[cell] += shared.image[sharer * cells + cell];
      shared.work[cell] += shared.work[sharer * cells + cell];
      shared.out[cell] += shared.out[sharer * cells + cell];
    }
  });
  __syncthreads();
}

// out = (T U)^T U out U^T; nothing else changes.
__device__ __forceinline__ void adjoint_sweep(const Resample& call, const ResampleShared& shared, int sample) {
  const int count = shared.y.cells * shared.x.cells;
  // Neither map of the views is needed any more.
  each(count, [&](int p) {
    shared.original[p] = shared.image[p];
    shared.augmented[p] = shared.out[p];
  });
  __syncthreads();
  sweep(call, shared, sample, false);
  each(count, [&](int p) { shared.image[p] = shared.original[p]; });
  __syncthreads();
}

}  // namespace cgc::CGC_ISA
