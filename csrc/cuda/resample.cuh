// Stage resample: heatmaps and a transform -> unit rows and positives, as H x W algebra (docs/mathematics.md, section
// 2), one block a sample. Everything here is H * W-sized and in double. The matrices P, Q and K of a crop are summed
// over the pixels of each axis, a chunk of pixels at a time; a warp is one sweep over the pixels of the view.
#pragma once

#include "platform.cuh"

#include "../common/taps.h"

namespace cgc::CGC_ISA {

// One image axis and its matrices in shared memory, each [cells, cells].
struct Axis {
  int size, cells;
  double *p, *q, *k, *sums;  // U^T R U, (R U)^T (R U), U^T U, U^T 1
};

struct ResamplePhase {
  Resample call;
  int table;  // doubles of shared memory for rows of U and R U
};

struct ResampleBackwardPhase {
  ResampleBackward call;
  int table;
  double consistency;
  Scalar grad_loss;  // of the fused loss; null where grad_positives is all there is
};

// Maps of one sample in shared memory, [P]; the last three hold a number for every thread of the block.
struct ResampleShared {
  Axis y, x;
  double *original, *augmented, *image, *work, *out, *table, *scratch;
  int table_size;
};

CGC_HD inline int axis_doubles(int cells) { return 3 * cells * cells + cells; }
CGC_HD inline int slots(int positions) { return maximum(positions, block_threads); }

// Doubles of shared memory without the table.
CGC_HD inline int resample_doubles(int height, int width) {
  const int positions = height * width;
  return axis_doubles(height) + axis_doubles(width) + 2 * positions + 3 * slots(positions) + block_warps;
}

// Doubles of the table that one pixel takes: rows of U and R U of a crop, or two values along each axis of a warp.
CGC_HD inline int pixel_doubles(int height, int width) { return 2 * (height + width); }

__device__ __forceinline__ ResampleShared resample_shared(const Resample& call, int table) {
  SIMT_DYN_SHARED(double, memory);
  const int height = int(call.height), width = int(call.width), positions = height * width;
  const auto take = [&](int count) {
    double* const begin = memory;
    memory += count;
    return begin;
  };
  const auto axis = [&](int size, int cells) {
    const int square = cells * cells;
    return Axis{size, cells, take(square), take(square), take(square), take(cells)};
  };
  ResampleShared shared;
  shared.y = axis(int(call.size_h), height);
  shared.x = axis(int(call.size_w), width);
  shared.original = take(positions);
  shared.augmented = take(positions);
  shared.image = take(slots(positions));
  shared.work = take(slots(positions));
  shared.out = take(slots(positions));
  shared.scratch = take(block_warps);
  shared.table = take(table);
  shared.table_size = table;
  return shared;
}

// ---- Matrices of a crop

// to[i][j] += sum over pixels of left[pixel][i] * right[pixel][j]; right null for a column of ones. Four lanes share an
// entry.
__device__ __forceinline__ void add_products(const double* left, const double* right, int pixels, int cells,
                                             double* to) {
  constexpr int lanes = 4;
  const int columns = right == nullptr ? 1 : cells, entries = cells * columns;
  for (int start = 0; start < entries; start += block_threads / lanes) {
    const int entry = start + thread() / lanes, i = entry / columns, j = entry - i * columns;
    double sum = 0;
    if (entry < entries) {
      for (int pixel = thread() % lanes; pixel < pixels; pixel += lanes) {
        sum += left[pixel * cells + i] * (right == nullptr ? 1.0 : right[pixel * cells + j]);
      }
    }
    sum = warp_sum(sum, lanes);
    if (entry < entries && thread() % lanes == 0) to[entry] += sum;
  }
}

__device__ __forceinline__ void add_stencil(const Stencil& stencil, double factor, double* row) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < stencil.count) row[stencil.cell[i]] += factor * stencil.share[i];
  }
}

// The pixels' rows of U and of R U, a pixel a thread.
__device__ __forceinline__ void tabulate(const Axis& axis, bool crops, index_t start, index_t length, bool flip,
                                         int first, int pixels, double* up, double* seen) {
  const double ratio = double(length) / double(axis.size);
  for (int pixel = thread(); pixel < pixels; pixel += block_threads) {
    double *row = up + pixel * axis.cells, *seen_row = seen + pixel * axis.cells;
    for (int i = 0; i < axis.cells; ++i) row[i] = seen_row[i] = 0;
    const Tap tap = upsample_tap(first + pixel, axis.size, axis.cells);
    row[tap.low] += 1 - tap.share;
    row[tap.high] += tap.share;
    if (!crops) continue;
    const Tap source = crop_tap(first + pixel, axis.size, start, length, flip, ratio);
    const Tap low = upsample_tap(source.low, axis.size, axis.cells);
    const Tap high = upsample_tap(source.high, axis.size, axis.cells);
    add_stencil(blend(low, 1 - source.share, high, source.share), 1, seen_row);
  }
}

// The matrices of one sample, those of its crop only where `crops`; loops rather than calls, which keeps the code
// small.
__device__ __forceinline__ void prepare(const Resample& call, const ResampleShared& shared, index_t sample,
                                        bool crops) {
  const index_t* crop = call.crops + (crops ? sample * 5 : 0);
  for (int side = 0; side < 2; ++side) {
    const Axis axis = side == 0 ? shared.y : shared.x;
    const index_t start = crops ? crop[side] : 0, length = crops ? crop[2 + side] : 1;
    const bool flip = crops && side == 1 && crop[4] != 0;
    const int most = shared.table_size / (2 * axis.cells);
    double *up = shared.table, *seen = up + most * axis.cells;
    for (int i = thread(); i < axis_doubles(axis.cells); i += block_threads) axis.p[i] = 0;  // they lie side by side
    for (int first = 0; first < axis.size; first += most) {
      const int pixels = minimum(most, axis.size - first);
      __syncthreads();
      tabulate(axis, crops, start, length, flip, first, pixels, up, seen);
      __syncthreads();
      for (int matrix = crops ? 0 : 2; matrix < 4; ++matrix) {  // P, Q, K, sums
        add_products(matrix == 1 ? seen : up,
                     matrix < 2    ? seen
                     : matrix == 2 ? up
                                   : nullptr,
                     pixels, axis.cells, axis.p + matrix * axis.cells * axis.cells);
      }
    }
    __syncthreads();
  }
}

// out = left m right^T, or left^T m right; m may be out. Ends with a barrier.
__device__ __forceinline__ void sandwich(const ResampleShared& shared, const double* left, const double* right,
                                         bool transposed, const double* m, double* out) {
  const int height = shared.y.cells, width = shared.x.cells, count = height * width;
  const int left_row = transposed ? 1 : height, left_step = transposed ? height : 1;
  const int right_row = transposed ? 1 : width, right_step = transposed ? width : 1;
  for (int p = thread(); p < count; p += block_threads) {
    const int i = p / width, j = p - i * width;
    double sum = 0;
    for (int k = 0; k < height; ++k) sum += left[i * left_row + k * left_step] * m[k * width + j];
    shared.work[p] = sum;
  }
  __syncthreads();
  for (int p = thread(); p < count; p += block_threads) {
    const int i = p / width, j = p - i * width;
    double sum = 0;
    for (int k = 0; k < width; ++k) sum += shared.work[i * width + k] * right[j * right_row + k * right_step];
    out[p] = sum;
  }
  __syncthreads();
}

// ---- Warps

// One row of pixels in the table: along y the sampled values times their shares, along x the shares.
struct WarpTable {
  double *seen_y, *adjoint_y, *from_x, *up_x;  // [pixels, cells]
};

// What one augmented pixel takes from the original's map, and the upsampled map of the augmented view there.
__device__ __forceinline__ void sample_pixel(const ResampleShared& shared, const double* inverse, int row, int column,
                                             int slot, const double* original, const double* augmented,
                                             const WarpTable& table) {
  const Axis &y = shared.y, &x = shared.x;
  double *seen_y = table.seen_y + slot * y.cells, *adjoint_y = table.adjoint_y + slot * y.cells;
  double *from_x = table.from_x + slot * x.cells, *up_x = table.up_x + slot * x.cells;
  for (int i = 0; i < y.cells; ++i) seen_y[i] = adjoint_y[i] = 0;
  for (int i = 0; i < x.cells; ++i) from_x[i] = up_x[i] = 0;
  double at_x, at_y;
  Stencil from_rows, from_columns;
  const auto up_rows = [&](index_t pixel) { return upsample_tap(pixel, y.size, y.cells); };
  const auto up_columns = [&](index_t pixel) { return upsample_tap(pixel, x.size, x.cells); };
  if (!warp_source(inverse, column, row, at_x, at_y)) return;
  if (!warp_stencil(at_y, y.size, up_rows, from_rows)) return;
  if (!warp_stencil(at_x, x.size, up_columns, from_columns)) return;
  const Tap tap_y = up_rows(row), tap_x = up_columns(column);
  const double *low = augmented + tap_y.low * x.cells, *high = augmented + tap_y.high * x.cells;
  const double value = (1 - tap_y.share) * ((1 - tap_x.share) * low[tap_x.low] + tap_x.share * low[tap_x.high]) +
                       tap_y.share * ((1 - tap_x.share) * high[tap_x.low] + tap_x.share * high[tap_x.high]);
  add_stencil(from_rows, value, adjoint_y);
  add_stencil(from_columns, 1, from_x);
  if (original == nullptr) return;
  double seen = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i >= from_rows.count) continue;
    const double* cells = original + from_rows.cell[i] * x.cells;
    double along = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < from_columns.count) along += from_columns.share[j] * cells[from_columns.cell[j]];
    }
    seen += from_rows.share[i] * along;
  }
  add_stencil(from_rows, seen, seen_y);
  up_x[tap_x.low] += seen * (1 - tap_x.share);
  up_x[tap_x.high] += seen * tap_x.share;
}

// image = U^T T(U o U^T) U, work = (T U)^T (T U) o, both skipped where o is null, and out = (T U)^T U a U^T. Cells have
// owners, so nothing is added out of order; where cells are fewer than threads, several share one and are summed last.
__device__ __forceinline__ void sweep(const Resample& call, const ResampleShared& shared, index_t sample,
                                      const double* original, const double* augmented) {
  const Axis &y = shared.y, &x = shared.x;
  const int cells = y.cells * x.cells, sharers = maximum(1, block_threads / cells);
  const int pixels = shared.table_size / pixel_doubles(y.cells, x.cells);
  const WarpTable table{shared.table, shared.table + pixels * y.cells, shared.table + 2 * pixels * y.cells,
                        shared.table + pixels * (2 * y.cells + x.cells)};
  for (int i = thread(); i < sharers * cells; i += block_threads) shared.image[i] = shared.work[i] = shared.out[i] = 0;
  for (int row = 0; row < y.size; ++row) {
    const Tap tap = upsample_tap(row, y.size, y.cells);
    for (int first = 0; first < x.size; first += pixels) {
      const int count = minimum(pixels, x.size - first);
      __syncthreads();
      for (int slot = thread(); slot < count; slot += block_threads) {
        sample_pixel(shared, call.inverses + sample * 9, row, first + slot, slot, original, augmented, table);
      }
      __syncthreads();
      for (int own = thread(); own < sharers * cells; own += block_threads) {
        const int sharer = own / cells, cell = own - sharer * cells, i = cell / x.cells, j = cell - i * x.cells;
        double seen = 0, gram = 0, adjoint = 0;
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
      }
    }
  }
  __syncthreads();
  for (int cell = thread(); cell < cells; cell += block_threads) {
    for (int sharer = 1; sharer < sharers; ++sharer) {
      shared.image[cell] += shared.image[sharer * cells + cell];
      shared.work[cell] += shared.work[sharer * cells + cell];
      shared.out[cell] += shared.out[sharer * cells + cell];
    }
  }
  __syncthreads();
}

// ---- Both ways

// m = M / (s + eps) + eps; returns s, the sum of the upsampled map.
template <class Acc>
__device__ __forceinline__ double normalise(const ResampleShared& shared, const Acc* heatmap, double eps, double* m) {
  const int width = shared.x.cells, count = shared.y.cells * width;
  double sum = 0;
  for (int p = thread(); p < count; p += block_threads) {
    sum += shared.y.sums[p / width] * shared.x.sums[p % width] * double(simt::gld(heatmap + p));
  }
  sum = block_sum(sum, shared.scratch);
  for (int p = thread(); p < count; p += block_threads) m[p] = normalised(double(simt::gld(heatmap + p)), sum, eps);
  __syncthreads();
  return sum;
}

// The three maps that the backward needs, and what the norm of the seen map and the positive are made of.
struct Products {
  double square, cross;
};

__device__ __forceinline__ Products store_state(const Resample& call, const ResampleShared& shared, index_t sample) {
  const int count = shared.y.cells * shared.x.cells;
  double *seen = call.state + sample * 3 * count, *gram = seen + count, *adjoint = gram + count;
  const bool keeps_seen = call.objective == Objective::paper;
  double square = 0, cross = 0;
  if (call.inverses != nullptr) sweep(call, shared, sample, shared.original, shared.augmented);
  if (call.crops != nullptr) sandwich(shared, shared.y.p, shared.x.p, false, shared.original, shared.image);
  for (int p = thread(); p < count; p += block_threads) {
    simt::gst(seen + p, shared.image[p]);
    cross += shared.augmented[p] * shared.image[p];
  }
  if (call.inverses != nullptr) {
    for (int p = thread(); p < count; p += block_threads) {
      simt::gst(gram + p, shared.work[p]);
      simt::gst(adjoint + p, shared.out[p]);
      square += shared.original[p] * shared.work[p];
    }
  } else {
    sandwich(shared, shared.y.q, shared.x.q, false, shared.original, shared.out);
    for (int p = thread(); p < count; p += block_threads) {
      simt::gst(gram + p, shared.out[p]);
      square += shared.original[p] * shared.out[p];
    }
    sandwich(shared, shared.y.p, shared.x.p, true, shared.augmented, shared.out);
    for (int p = thread(); p < count; p += block_threads) simt::gst(adjoint + p, shared.out[p]);
  }
  __syncthreads();
  if (!keeps_seen) sandwich(shared, shared.y.k, shared.x.k, false, shared.augmented, shared.image);
  return {block_sum(square, shared.scratch), block_sum(cross, shared.scratch)};
}

template <class Acc>
__device__ __forceinline__ void resample_sample(const ResamplePhase& phase, const ResampleShared& shared,
                                                index_t sample) {
  const Resample& call = phase.call;
  const int count = shared.y.cells * shared.x.cells;
  prepare(call, shared, sample, call.crops != nullptr);
  normalise(shared, static_cast<const Acc*>(call.heatmaps) + sample * count, call.eps, shared.original);
  normalise(shared, static_cast<const Acc*>(call.aug_heatmaps) + sample * count, call.eps, shared.augmented);
  const Products products = store_state(call, shared, sample);
  const bool paper = call.objective == Objective::paper;
  if (paper) sandwich(shared, shared.y.k, shared.x.k, false, shared.augmented, shared.out);
  const double* image = paper ? shared.out : shared.image;
  double square = 0;
  for (int p = thread(); p < count; p += block_threads) square += shared.augmented[p] * image[p];
  const double aug_scale = inverse_root(block_sum(square, shared.scratch)), seen_scale = inverse_root(products.square);
  if (thread() == 0) simt::gst(call.positives + sample, products.cross * aug_scale * seen_scale);
  if (call.objective != Objective::mse) {
    Acc *row = static_cast<Acc*>(call.rows) + sample * count, *key = static_cast<Acc*>(call.keys) + sample * count;
    for (int p = thread(); p < count; p += block_threads) {
      simt::gst(row + p, Acc(paper ? shared.image[p] * seen_scale : shared.augmented[p] * aug_scale));
      simt::gst(key + p, Acc((paper ? shared.augmented[p] : shared.image[p]) * aug_scale));
    }
  }
  __syncthreads();
}

template <class Acc>
__device__ __forceinline__ void resample_phase(const ResamplePhase& phase) {
  const ResampleShared shared = resample_shared(phase.call, phase.table);
  for (index_t sample = blockIdx.x; sample < phase.call.batch; sample += gridDim.x) {
    resample_sample<Acc>(phase, shared, sample);
  }
}

// ---- Backward

// Gradient of one positive: what the contrast or the mse objective sends, and the consistency term.
__device__ __forceinline__ double positive_gradient(const ResampleBackwardPhase& phase, index_t sample) {
  const ResampleBackward& call = phase.call;
  if (phase.grad_loss.data == nullptr) return simt::gld(call.grad_positives + sample);
  const double grad_loss = value_of(phase.grad_loss);
  const double share = phase.consistency * grad_loss / double(call.forward.batch);
  const double grad = call.forward.objective == Objective::mse
                          ? mse_gradient(simt::gld(call.forward.positives + sample), mse_share(grad_loss, call.forward))
                          : simt::gld(call.grad_positives + sample);
  return grad - share;
}

// Gradient of m, overwritten, back to the heatmap, damped where it is near-dead.
template <class Acc>
__device__ __forceinline__ void normalise_backward(const ResampleShared& shared, const Acc* heatmap, double sum,
                                                   double eps, const double* grad, Acc* grad_heatmap) {
  const int width = shared.x.cells, count = shared.y.cells * width;
  double inner = 0;
  for (int p = thread(); p < count; p += block_threads) inner += grad[p] * double(simt::gld(heatmap + p));
  inner = block_sum(inner, shared.scratch) / (sum + eps);
  const double divisor = normalisation_divisor(sum, eps);
  for (int p = thread(); p < count; p += block_threads) {
    const double value =
        normalisation_gradient(grad[p], inner, shared.y.sums[p / width], shared.x.sums[p % width], divisor);
    simt::gst(grad_heatmap + p, Acc(value));
  }
}

// Gradients of the normalised maps, left in shared.original and shared.augmented.
template <class Acc>
__device__ __forceinline__ void unit_gradients(const ResampleBackwardPhase& phase, const ResampleShared& shared,
                                               index_t sample) {
  const ResampleBackward& call = phase.call;
  const Resample& forward = call.forward;
  const int count = shared.y.cells * shared.x.cells;
  const double *seen = forward.state + sample * 3 * count, *gram = seen + count, *adjoint = gram + count;
  const bool contrasts = forward.objective != Objective::mse, paper = forward.objective == Objective::paper;
  const Acc* grad_rows = static_cast<const Acc*>(call.grad_rows) + (contrasts ? sample * count : 0);
  const Acc* grad_keys = static_cast<const Acc*>(call.grad_keys) + (contrasts ? sample * count : 0);
  sandwich(shared, shared.y.k, shared.x.k, false, shared.augmented, shared.image);
  double square = 0, seen_square = 0, cross = 0, aug_inner = 0, seen_inner = 0;
  for (int p = thread(); p < count; p += block_threads) {
    const double row = contrasts ? double(simt::gld(grad_rows + p)) : 0;
    const double key = contrasts ? double(simt::gld(grad_keys + p)) : 0;
    const double at_seen = simt::gld(seen + p);
    square += shared.augmented[p] * shared.image[p];
    seen_square += shared.original[p] * simt::gld(gram + p);
    cross += shared.augmented[p] * at_seen;
    aug_inner += paper ? key * shared.augmented[p] : row * shared.augmented[p] + key * shared.image[p];
    seen_inner += paper ? row * at_seen : 0;
    shared.out[p] = paper ? row : key;
  }
  const double aug_scale = inverse_root(block_sum(square, shared.scratch));
  const double seen_scale = inverse_root(block_sum(seen_square, shared.scratch));
  const double grad = positive_gradient(phase, sample);
  const double cosine = grad * block_sum(cross, shared.scratch) * aug_scale * seen_scale;
  const double aug_radial = (cosine + aug_scale * block_sum(aug_inner, shared.scratch)) * aug_scale;
  const double seen_radial = (cosine + seen_scale * block_sum(seen_inner, shared.scratch)) * seen_scale;
  // What arrived at the image of a map goes back through it.
  if (!paper) {
    sandwich(shared, shared.y.k, shared.x.k, false, shared.out, shared.out);
  } else if (forward.crops != nullptr) {
    sandwich(shared, shared.y.p, shared.x.p, true, shared.out, shared.out);
  } else {
    double* const kept = shared.image;
    for (int p = thread(); p < count; p += block_threads)
      shared.original[p] = kept[p], shared.augmented[p] = shared.out[p];
    __syncthreads();
    sweep(forward, shared, sample, nullptr, shared.augmented);
    for (int p = thread(); p < count; p += block_threads) kept[p] = shared.original[p];
    __syncthreads();
  }
  for (int p = thread(); p < count; p += block_threads) {
    const double key = paper ? double(simt::gld(grad_keys + p)) : 0;
    const double row = contrasts && !paper ? double(simt::gld(grad_rows + p)) : 0;
    const double through = contrasts ? shared.out[p] : 0;
    shared.original[p] = unit_gradient(seen_scale, paper ? through : 0, grad * aug_scale, simt::gld(adjoint + p),
                                       seen_radial, simt::gld(gram + p));
    shared.augmented[p] = unit_gradient(aug_scale, paper ? key : row + through, grad * seen_scale, simt::gld(seen + p),
                                        aug_radial, shared.image[p]);
  }
}

template <class Acc>
__device__ __forceinline__ void resample_backward_phase(const ResampleBackwardPhase& phase) {
  const Resample& forward = phase.call.forward;
  const ResampleShared shared = resample_shared(forward, phase.table);
  const int count = shared.y.cells * shared.x.cells;
  for (index_t sample = blockIdx.x; sample < forward.batch; sample += gridDim.x) {
    const Acc* heatmap = static_cast<const Acc*>(forward.heatmaps) + sample * count;
    const Acc* aug_heatmap = static_cast<const Acc*>(forward.aug_heatmaps) + sample * count;
    prepare(forward, shared, sample, forward.crops != nullptr && forward.objective == Objective::paper);
    const double sum = normalise(shared, heatmap, forward.eps, shared.original);
    const double aug_sum = normalise(shared, aug_heatmap, forward.eps, shared.augmented);
    unit_gradients<Acc>(phase, shared, sample);
    normalise_backward(shared, heatmap, sum, forward.eps, shared.original,
                       static_cast<Acc*>(phase.call.grad_heatmaps) + sample * count);
    normalise_backward(shared, aug_heatmap, aug_sum, forward.eps, shared.augmented,
                       static_cast<Acc*>(phase.call.grad_aug_heatmaps) + sample * count);
    __syncthreads();
  }
}

}  // namespace cgc::CGC_ISA
