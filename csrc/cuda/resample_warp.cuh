// Warps by a 3 x 3 matrix: a sweep over the pixels of the view, in double (docs/mathematics.md, section 3).
#pragma once

#include "../common/resample_taps.h"
#include "resample.cuh"

namespace cgc::CGC_ISA {

// What a sweep adds up at every cell, [3, slots]: U^T T(U o U^T) U, (T U)^T (T U) o and (T U)^T U a U^T.
enum WarpMap { map_seen, map_gram, map_adjoint, warp_maps };

// One row of pixels in the table: along y the sampled values times their shares, along x the shares.
struct WarpTable {
  double *seen_y, *adjoint_y, *from_x, *up_x;  // [pixels, cells]
};

// visit(cell, share) for the cells of a stencil.
template <class F>
__device__ __forceinline__ void each_cell(const Stencil& stencil, F&& visit) {
  unrolled<4>([&](int i) {
    if (i < stencil.count) visit(stencil.cell[i], stencil.share[i]);
  });
}

// The upsampled map of the augmented view.
__device__ __forceinline__ double upsampled(const Resample& call, const double* augmented, int row, const Tap& x) {
  const int width = int(call.width);
  const Tap y = upsample_tap(row, int(call.size_h), int(call.height));
  const double *low = augmented + y.low * width, *high = augmented + y.high * width;
  return (1 - y.share) * ((1 - x.share) * low[x.low] + x.share * low[x.high]) +
         y.share * ((1 - x.share) * high[x.low] + x.share * high[x.high]);
}

// What one augmented pixel takes from the original's map, and the upsampled map of the augmented view there.
__device__ __forceinline__ void sample_pixel(const Resample& call, const ResampleShared<double>& shared,
                                             const double* inverse, int row, int column, int slot, bool whole,
                                             const WarpTable& table) {
  const int height = int(call.height), width = int(call.width);
  const int size_h = int(call.size_h), size_w = int(call.size_w);
  double *seen_y = table.seen_y + slot * height, *adjoint_y = table.adjoint_y + slot * height;
  double *from_x = table.from_x + slot * width, *up_x = table.up_x + slot * width;
  for (int i = 0; i < height; ++i) seen_y[i] = adjoint_y[i] = 0;
  for (int i = 0; i < width; ++i) from_x[i] = up_x[i] = 0;
  double at_x, at_y;
  if (!warp_source(inverse, column, row, at_x, at_y)) return;
  Stencil from_columns, from_rows;
  const auto up_columns = [&](cell_t pixel) { return upsample_tap(pixel, size_w, width); };
  const auto up_rows = [&](cell_t pixel) { return upsample_tap(pixel, size_h, height); };
  if (!warp_stencil(at_x, size_w, up_columns, from_columns)) return;
  each_cell(from_columns, [&](int j, double share) { from_x[j] += share; });
  if (!warp_stencil(at_y, size_h, up_rows, from_rows)) return;
  const Tap tap_x = upsample_tap(column, size_w, width);
  const double up = upsampled(call, shared.augmented, row, tap_x);
  each_cell(from_rows, [&](int i, double share) { adjoint_y[i] += up * share; });
  if (!whole) return;
  double seen = 0;
  each_cell(from_rows, [&](int i, double share) {
    double along = 0;
    each_cell(from_columns, [&](int j, double of_row) { along += of_row * shared.original[i * width + j]; });
    seen += share * along;
  });
  each_cell(from_rows, [&](int i, double share) { seen_y[i] += seen * share; });
  up_x[tap_x.low] += seen * (1 - tap_x.share);
  up_x[tap_x.high] += seen * tap_x.share;
}

// Adds one chunk of a row of pixels to the maps. Cells have owners, so nothing is added out of order.
__device__ __forceinline__ void add_chunk(const Resample& call, const WarpTable& table, int row, int count, int sharers,
                                          double* maps) {
  const int height = int(call.height), width = int(call.width), cells = height * width;
  const Tap tap = upsample_tap(row, int(call.size_h), height);
  each(sharers * cells, [&](int own) {
    const int sharer = own / cells, cell = own - sharer * cells, i = cell / width, j = cell - i * width;
    double seen = 0, gram = 0, adjoint = 0;
    for (int slot = sharer; slot < count; slot += sharers) {
      const double share = table.from_x[slot * width + j];
      adjoint += share * table.adjoint_y[slot * height + i];
      gram += share * table.seen_y[slot * height + i];
      seen += table.up_x[slot * width + j];
    }
    const double up = (tap.low == i ? 1 - tap.share : 0) + (tap.high == i ? tap.share : 0);
    maps[map_seen * slots(cells) + own] += up * seen;
    maps[map_gram * slots(cells) + own] += gram;
    maps[map_adjoint * slots(cells) + own] += adjoint;
  });
}

// Fills the maps, in shared.middle, the first two only if `whole`, from shared.original and shared.augmented. Where
// cells are fewer than threads, several share one: swept() adds them up.
__device__ __forceinline__ void sweep(const Resample& call, const ResampleShared<double>& shared, index_t sample,
                                      bool whole) {
  const int height = int(call.height), width = int(call.width), size_w = int(call.size_w);
  const int cells = height * width, sharers = maximum(1, block_threads / cells);
  const int pixels = shared.table_size(height, width) / (2 * (height + width));
  const WarpTable table{shared.table, shared.table + pixels * height, shared.table + 2 * pixels * height,
                        shared.table + pixels * (2 * height + width)};
  each(warp_maps * slots(cells), [&](int i) { shared.middle[i] = 0; });
  for (int row = 0; row < int(call.size_h); ++row) {
    for (int first = 0; first < size_w; first += pixels) {
      const int count = minimum(pixels, size_w - first);
      __syncthreads();
      each(count, [&](int slot) {
        sample_pixel(call, shared, call.inverses + sample * 9, row, first + slot, slot, whole, table);
      });
      __syncthreads();
      add_chunk(call, table, row, count, sharers, shared.middle);
    }
  }
  __syncthreads();
}

// A cell of a map that sweep() has filled.
__device__ __forceinline__ double swept(const ResampleShared<double>& shared, int map, int cell, int cells) {
  double sum = 0;
#pragma unroll 1
  for (int own = cell; own < maximum(1, block_threads / cells) * cells; own += cells)
    sum += shared.middle[map * slots(cells) + own];
  return sum;
}

}  // namespace cgc::CGC_ISA
