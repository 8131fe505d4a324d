// Stage resample: heatmaps and a transform -> unit rows and positives, as H x W algebra (docs/mathematics.md, section
// 2), one block a sample. Everything here is H * W-sized and in double. The matrices P, Q and K of a crop are summed
// over the pixels of each axis, a chunk of pixels at a time; a warp is one sweep over the pixels of the view.
#pragma once

#include "cam.cuh"

#include "../common/taps.h"

namespace cgc::CGC_ISA {

// Part of the shared memory: an offset, which takes half the registers of a pointer.
struct Span {
  __device__ __forceinline__ double& operator[](int i) const {
    SIMT_DYN_SHARED(double, memory);
    return memory[begin + i];
  }
  __device__ __forceinline__ Span operator+(int offset) const { return {begin + offset}; }
  int begin;
};

// One image axis and its matrices, each [cells, cells].
struct Axis {
  int size, cells;
  Span p, q, k, sums;  // U^T R U, (R U)^T (R U), U^T U, U^T 1
};

struct ResamplePhase {
  Resample call;
  int table;  // doubles of shared memory for rows of U and R U
};

struct ResampleBackwardPhase {
  ResampleBackward call;
  int table;
  double mse, consistency;  // gradients of a positive for a gradient 1 of the loss: of the mse objective, of the term
  Scalar grad_loss;         // of the fused loss; null where grad_positives is all there is
};

// Numbers of one sample in shared memory, behind those of block_sum: the sums s of both views, then what `factors`
// names.
constexpr int sample_numbers = 16;
enum Number { sum_original, sum_augmented, cross, seen_square, aug_square, aug_inner, seen_inner };
enum Factor { seen_scale, aug_scale, seen_share, aug_share, seen_radial, aug_radial, factors = 8 };

// Maps of one sample in shared memory, laid out anew by every function that wants them: see fresh(), [P]; the last
// three hold a number for every thread of the block.
struct ResampleShared {
  __device__ __forceinline__ double& number(int i) const { return scratch[block_warps + i]; }
  Axis y, x;
  Span original, augmented, image, work, out, table;
  double* scratch;  // numbers of warps, then of the sample
  int table_size;
};

CGC_HD inline int axis_doubles(int cells) { return 3 * cells * cells + cells; }
CGC_HD inline int slots(int positions) { return maximum(positions, block_threads); }

// Doubles of shared memory without the table.
CGC_HD inline int resample_doubles(int height, int width) {
  const int positions = height * width;
  return axis_doubles(height) + axis_doubles(width) + 2 * positions + 3 * slots(positions) + block_warps +
         sample_numbers;
}

// Doubles of the table that one pixel takes: rows of U and R U of a crop, or two values along each axis of a warp.
CGC_HD inline int pixel_doubles(int height, int width) { return 2 * (height + width); }

__device__ __forceinline__ ResampleShared resample_shared(const Resample& call, int table) {
  SIMT_DYN_SHARED(double, memory);
  const int height = fresh(int(call.height)), width = fresh(int(call.width)), positions = height * width;
  const auto axis = [&](int size, int cells, int begin) {
    const Span p{begin};
    const int square = cells * cells;
    return Axis{size, cells, p, p + square, p + 2 * square, p + 3 * square};
  };
  const Span original{block_warps + sample_numbers}, augmented = original + positions, image = augmented + positions;
  const Span work = image + slots(positions), out = work + slots(positions), end = out + slots(positions);
  const Axis y = axis(fresh(int(call.size_h)), height, end.begin);
  const Axis x = axis(fresh(int(call.size_w)), width, end.begin + axis_doubles(height));
  return {y, x, original, augmented, image, work, out, x.p + axis_doubles(width), memory, table};
}

// ---- Matrices of a crop

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

// ---- Warps

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

// ---- Both ways

// number(i) = sum over positions of term(position), for all threads after the next barrier.
template <class F>
__device__ __forceinline__ void sum_positions(const ResampleShared& shared, int i, F&& term) {
  double sum = 0;
  each(shared.y.cells * shared.x.cells, [&](int p) { sum += term(p); });
  sum = block_sum(sum, shared.scratch);
  if (thread() == 0) shared.number(i) = sum;
}

// m = M / (s + eps) + eps of both views, where s is the sum of the upsampled map.
template <class Acc>
__device__ __forceinline__ void normalise(const Resample& call, const ResampleShared& shared, int sample) {
  const int width = shared.x.cells, count = shared.y.cells * width;
#pragma unroll 1
  for (int view = 0; view < 2; ++view) {
    const Acc* heatmap =
        static_cast<const Acc*>(view == 0 ? call.heatmaps : call.aug_heatmaps) + index_t(sample) * count;
    const Span m = view == 0 ? shared.original : shared.augmented;
    sum_positions(shared, sum_original + view, [&](int p) {
      m[p] = double(simt::gld(heatmap + p));
      return shared.y.sums[p / width] * shared.x.sums[p % width] * m[p];
    });
    __syncthreads();
    const double sum = shared.number(sum_original + view);
    each(count, [&](int p) { m[p] = normalised(m[p], sum, call.eps); });
  }
  __syncthreads();
}

// Writes the three maps that the backward needs and leaves in shared.image the one that a row or key is made of: T o of
// the paper's objective, otherwise K a K. One loop over the four maps, which keeps the code small.
__device__ __forceinline__ void map_products(const Resample& call, const ResampleShared& shared, int sample) {
  const int count = shared.y.cells * shared.x.cells;
  const bool crops = call.crops != nullptr;
  const int kept = call.objective == Objective::paper ? 0 : 3;
  if (!crops) sweep(call, shared, sample, true);
#pragma unroll 1
  for (int map = 0; map < 4; ++map) {  // P o P^T, Q o Q, P^T a P, K a K
    const int matrix = map == 3 ? 2 : map & 1;
    Span result = shared.out;
    if (crops || map == 3) {
      sandwich(shared, shared.y.p + matrix * shared.y.cells * shared.y.cells,
               shared.x.p + matrix * shared.x.cells * shared.x.cells, map == 2,
               map < 2 ? shared.original : shared.augmented, shared.out);
    } else if (map < 2) {
      result = map == 0 ? shared.image : shared.work;
    }
    const Span other = map == 1 ? shared.original : shared.augmented;
    sum_positions(shared,
                  map == 0   ? cross
                  : map == 1 ? seen_square
                  : map == 2 ? aug_inner
                             : aug_square,
                  [&](int p) {
                    const double value = result[p];
                    if (map < 3) simt::gst(call.state + (index_t(sample) * 3 + map) * count + p, value);
                    if (map == kept) shared.image[p] = value;
                    return other[p] * value;
                  });
  }
  __syncthreads();
}

template <class Acc>
__device__ __forceinline__ void write_rows(const Resample& call, const ResampleShared& shared, int sample) {
  const int count = shared.y.cells * shared.x.cells;
  const double aug_scale = inverse_root(shared.number(aug_square));
  const double seen_scale = inverse_root(shared.number(seen_square));
  if (thread() == 0) simt::gst(call.positives + sample, shared.number(cross) * aug_scale * seen_scale);
  if (call.objective == Objective::mse) return;
  const bool paper = call.objective == Objective::paper;
  each(count, [&](int p) {
    const double augmented = shared.augmented[p] * aug_scale;
    const double image = shared.image[p] * (paper ? seen_scale : aug_scale);
    simt::gst(static_cast<Acc*>(call.rows) + index_t(sample) * count + p, Acc(paper ? image : augmented));
    simt::gst(static_cast<Acc*>(call.keys) + index_t(sample) * count + p, Acc(paper ? augmented : image));
  });
}

// Heatmaps that still lie in sums of their splits are finished first.
template <class Acc>
__device__ __forceinline__ void resample_phase(const ResamplePhase& phase, const CamPhase& cam) {
  const Resample& call = phase.call;
#pragma unroll 1
  for (int sample = int(blockIdx.x); sample < int(call.batch); sample += int(gridDim.x)) {
    if (cam.plan.splits > 1) {
#pragma unroll 1
      for (int view = 0; view < 2; ++view) finish_heatmap<Acc>(cam, view, sample);
    }
    prepare(call, resample_shared(call, phase.table), sample, call.crops != nullptr);
    normalise<Acc>(call, resample_shared(call, phase.table), sample);
    map_products(call, resample_shared(call, phase.table), sample);
    write_rows<Acc>(call, resample_shared(call, phase.table), sample);
    __syncthreads();
  }
}

// ---- Backward

// Gradient of one positive: what the contrast or the mse objective sends, and the consistency term.
__device__ __forceinline__ double positive_gradient(const ResampleBackwardPhase& phase, int sample) {
  const ResampleBackward& call = phase.call;
  const Scalar scalar{fresh(phase.grad_loss.data), phase.grad_loss.float64};
  if (scalar.data == nullptr) return simt::gld(call.grad_positives + sample);
  const double grad_loss = value_of(scalar);
  const double grad = call.forward.objective == Objective::mse
                          ? mse_gradient(simt::gld(call.forward.positives + sample), phase.mse * grad_loss)
                          : simt::gld(call.grad_positives + sample);
  return grad + phase.consistency * grad_loss;
}

// The inner products of the backward, and the factors of unit_gradient that follow from them. Leaves the Gram image of
// the seen map in shared.original.
template <class Acc>
__device__ __forceinline__ void inner_products(const ResampleBackwardPhase& phase, const ResampleShared& shared,
                                               int sample, const double* state, const Acc* grad_rows,
                                               const Acc* grad_keys) {
  const bool contrasts = phase.call.forward.objective != Objective::mse;
  const bool paper = phase.call.forward.objective == Objective::paper;
  const int count = shared.y.cells * shared.x.cells;
#pragma unroll 1
  for (int i = cross; i <= seen_inner; ++i) {
    sum_positions(shared, i, [&](int p) {
      const double row = contrasts && i >= aug_inner ? double(simt::gld(grad_rows + p)) : 0;
      if (i == seen_square) {
        const double gram = simt::gld(state + count + p), product = shared.original[p] * gram;
        shared.original[p] = gram;  // the map itself is not needed any more
        return product;
      }
      if (i == seen_inner) return paper ? row * simt::gld(state + p) : 0;
      if (i == cross) return shared.augmented[p] * simt::gld(state + p);
      if (i == aug_square) return shared.augmented[p] * shared.image[p];
      const double key = contrasts ? double(simt::gld(grad_keys + p)) : 0;
      return paper ? key * shared.augmented[p] : row * shared.augmented[p] + key * shared.image[p];
    });
  }
  __syncthreads();
  if (thread() == 0) {
    const double of_seen = inverse_root(shared.number(seen_square)), of_aug = inverse_root(shared.number(aug_square));
    const double grad = positive_gradient(phase, sample), cosine = grad * shared.number(cross) * of_aug * of_seen;
    shared.number(factors + seen_scale) = of_seen;
    shared.number(factors + aug_scale) = of_aug;
    shared.number(factors + seen_share) = grad * of_aug;
    shared.number(factors + aug_share) = grad * of_seen;
    shared.number(factors + seen_radial) = (cosine + of_seen * shared.number(seen_inner)) * of_seen;
    shared.number(factors + aug_radial) = (cosine + of_aug * shared.number(aug_inner)) * of_aug;
  }
  __syncthreads();
}

// Gradients of the normalised maps, left in shared.original and shared.augmented.
template <class Acc>
__device__ __forceinline__ void unit_gradients(const ResampleBackwardPhase& phase, const ResampleShared& shared,
                                               int sample) {
  const ResampleBackward& call = phase.call;
  const Resample& forward = call.forward;
  const int count = shared.y.cells * shared.x.cells;
  const double* state = forward.state + index_t(sample) * 3 * count;
  const bool contrasts = forward.objective != Objective::mse, paper = forward.objective == Objective::paper;
  const Acc* grad_rows = static_cast<const Acc*>(call.grad_rows) + (contrasts ? index_t(sample) * count : 0);
  const Acc* grad_keys = static_cast<const Acc*>(call.grad_keys) + (contrasts ? index_t(sample) * count : 0);
  sandwich(shared, shared.y.k, shared.x.k, false, shared.augmented, shared.image);
  inner_products(phase, shared, sample, state, grad_rows, grad_keys);
  // What arrived at the image of a map goes back through it.
  each(count, [&](int p) { shared.out[p] = contrasts ? double(simt::gld((paper ? grad_rows : grad_keys) + p)) : 0; });
  __syncthreads();
  const bool sweeps = paper && forward.inverses != nullptr;
  if (sweeps) {
    adjoint_sweep(forward, shared, sample);
  } else {
    sandwich(shared, paper ? shared.y.p : shared.y.k, paper ? shared.x.p : shared.x.k, paper, shared.out, shared.out);
  }
  each(count, [&](int p) {
    const double arrived = contrasts ? double(simt::gld((paper ? grad_keys : grad_rows) + p)) : 0;
    const double through = shared.out[p];
    const double seen = simt::gld(state + p);
    const double gram = sweeps ? simt::gld(state + count + p) : shared.original[p];
    const auto factor = [&](int i) { return shared.number(factors + i); };
    shared.original[p] = unit_gradient(factor(seen_scale), paper ? through : 0, factor(seen_share),
                                       simt::gld(state + 2 * count + p), factor(seen_radial), gram);
    shared.augmented[p] = unit_gradient(factor(aug_scale), paper ? arrived : arrived + through, factor(aug_share), seen,
                                        factor(aug_radial), shared.image[p]);
  });
  __syncthreads();
}

// Gradients of the normalised maps back to the heatmaps, damped where they are near-dead.
template <class Acc>
__device__ __forceinline__ void normalise_backward(const ResampleBackward& call, const ResampleShared& shared,
                                                   int sample) {
  const Resample& forward = call.forward;
  const int width = shared.x.cells, count = shared.y.cells * width;
#pragma unroll 1
  for (int view = 0; view < 2; ++view) {
    const index_t first = index_t(sample) * count;
    const Acc* heatmap = static_cast<const Acc*>(view == 0 ? forward.heatmaps : forward.aug_heatmaps) + first;
    Acc* to = static_cast<Acc*>(view == 0 ? call.grad_heatmaps : call.grad_aug_heatmaps) + first;
    const Span grad = view == 0 ? shared.original : shared.augmented;
    sum_positions(shared, cross, [&](int p) { return grad[p] * double(simt::gld(heatmap + p)); });
    __syncthreads();
    const double sum = shared.number(sum_original + view), inner = shared.number(cross) / (sum + forward.eps);
    const double divisor = normalisation_divisor(sum, forward.eps);
    each(count, [&](int p) {
      const double y = shared.y.sums[p / width], x = shared.x.sums[p % width];
      simt::gst(to + p, Acc(normalisation_gradient(grad[p], inner, y, x, divisor)));
    });
    __syncthreads();
  }
}

template <class Acc>
__device__ __forceinline__ void resample_backward_phase(const ResampleBackwardPhase& phase) {
  const Resample& forward = phase.call.forward;
#pragma unroll 1
  for (int sample = int(blockIdx.x); sample < int(forward.batch); sample += int(gridDim.x)) {
    prepare(forward, resample_shared(forward, phase.table), sample,
            forward.crops != nullptr && forward.objective == Objective::paper);
    normalise<Acc>(forward, resample_shared(forward, phase.table), sample);
    unit_gradients<Acc>(phase, resample_shared(forward, phase.table), sample);
    normalise_backward<Acc>(phase.call, resample_shared(forward, phase.table), sample);
  }
}

}  // namespace cgc::CGC_ISA
