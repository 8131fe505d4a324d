// Stage contrast: rows, keys, positives -> loss, in tiles of 16 x 32 similarities; [B, B] is never stored. A warp takes
// two rows of a tile, a lane one column. Logits are taken relative to the positive, whose own logit is then 0, with a
// running maximum; the backward recomputes the tiles from the row losses.
#pragma once

#include "platform.cuh"

namespace cgc::CGC_ISA {

constexpr int tile_rows = 2 * block_warps, tile_columns = warp_threads;
constexpr int tile_depth = 64,
              tile_stride = tile_depth + 1;  // elements of a row taken at a time; odd: no bank conflicts

struct ContrastPhase {
  Contrast call;
  double consistency, inverse_temperature;
  Scalar loss;
  Objective objective;
  index_t pixels;  // of the view, for the mse objective
  const double* positives;
  int splits;      // of the columns of a tile row
  void* largest;   // acc [B, splits]
  double* others;  // [B, splits]
};

CGC_HD inline int tiles(index_t count, int size) { return int((count + size - 1) / size); }

// A function of the call alone. Enough blocks for a large device, few enough numbers to merge.
CGC_HD inline int contrast_splits(index_t batch) {
  return minimum(clamp(512 / tiles(batch, tile_rows), 1, 16), tiles(batch, tile_columns));
}

CGC_HD inline index_t contrast_shared_bytes(int acc_bytes) {
  return index_t(acc_bytes) * (tile_rows + tile_columns) * tile_stride + index_t(sizeof(double)) * block_warps;
}

// Rows of [B, N] from `first` and columns from `depth` of both sides of a tile, zero outside.
template <class Acc>
struct Tile {
  __device__ Tile(const void* a, const void* b, int batch, int length)
      : a(static_cast<const Acc*>(a)), b(static_cast<const Acc*>(b)), batch(batch), length(length) {
    SIMT_DYN_SHARED(Acc, memory);
    rows = memory;
    columns = memory + tile_rows * tile_stride;
  }

  __device__ void load_side(const Acc* values, int first, int count, int depth, Acc* to) const {
    each(count * tile_depth, [&](int i) {
      const int r = i / tile_depth, k = i - r * tile_depth;
      const bool inside = first + r < batch && depth + k < length;
      to[r * tile_stride + k] = inside ? simt::gld(values + index_t(first + r) * length + depth + k) : Acc(0);
    });
  }

  // Similarities of the warp's two rows with the lane's column. The last slice of the depth, `slice`, stays loaded.
  __device__ void similarities(int first_row, int first_column, int slice, Acc (&sums)[2]) const {
    const int slices = int(tiles(length, tile_depth));
    sums[0] = sums[1] = 0;
#pragma unroll 1
    for (int i = 1; i <= slices; ++i) {
      const int depth = (slice + i) % slices * tile_depth, count = minimum(tile_depth, length - depth);
      __syncthreads();
      load_side(a, first_row, tile_rows, depth, rows);
      load_side(b, first_column, tile_columns, depth, columns);
      __syncthreads();
      const Acc *upper = rows + 2 * warp() * tile_stride, *lower = upper + tile_stride;
      const Acc* column = columns + lane() * tile_stride;
#pragma unroll(sizeof(Acc) == 8 ? 2 : 4)
      for (int k = 0; k < count; ++k) {
        sums[0] += upper[k] * column[k];
        sums[1] += lower[k] * column[k];
      }
    }
  }

  const Acc *a, *b;
  int batch;
  int length;
  Acc *rows, *columns;
};

template <class Acc>
__device__ __forceinline__ Acc warp_max(Acc value) {
  for (int distance = warp_threads / 2; distance > 0; distance /= 2) {
    value = maximum(value, __shfl_xor_sync(all_lanes, value, distance));
  }
  return value;
}

// ---- Forward

// Of each row and split of the columns, the largest logit above 0 and the sum of exp(logit - largest).
template <class Acc>
__device__ __forceinline__ void contrast_phase(const ContrastPhase& phase) {
  const Contrast& call = phase.call;
  const int items = tiles(call.batch, tile_rows) * phase.splits;
  const Tile<Acc> tile(call.rows, call.keys, int(call.batch), int(call.length));
#pragma unroll 1
  for (int item = int(blockIdx.x); item < items; item += int(gridDim.x)) {
    const auto share = [&] { return tiles(tiles(fresh(int(call.batch)), tile_columns), phase.splits); };
    const auto end = [&] {
      const int last = (fresh(item) % phase.splits + 1) * share();
      return minimum(tiles(fresh(int(call.batch)), tile_columns), last);
    };
    const auto row = [&](int r) { return fresh(item) / phase.splits * tile_rows + 2 * warp() + r; };
    Acc largest[2] = {0, 0};
    double others[2] = {0, 0};
#pragma unroll 1
    for (int t = item % phase.splits * share(); t < end(); ++t) {
      Acc logits[2];
      tile.similarities(fresh(item) / phase.splits * tile_rows, t * tile_columns, 0, logits);
#pragma unroll 1
      for (int r = 0; r < 2; ++r) {  // one after the other: two exponentials at once take too many registers
        const int column = t * tile_columns + lane();
        const Acc positive = row(r) < int(call.batch) ? Acc(simt::gld(call.positives + row(r))) : Acc(0);
        const Acc logit = ((r == 0 ? logits[0] : logits[1]) - positive) * Acc(phase.inverse_temperature);
        const Acc before = r == 0 ? largest[0] : largest[1];
        const bool counts = column < int(call.batch) && column != row(r);
        const Acc highest = warp_max(counts && logit > before ? logit : before);  // NaN is no maximum
        const double sum = double(warp_sum(counts ? std::exp(logit - highest) : Acc(0)));
        const double kept = (r == 0 ? others[0] : others[1]) * double(std::exp(before - highest));
        if (r == 0) largest[0] = highest, others[0] = kept + sum;
        if (r == 1) largest[1] = highest, others[1] = kept + sum;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (lane() != 0 || row(r) >= int(call.batch)) continue;
      const index_t at = index_t(row(r)) * phase.splits + item % phase.splits;
      simt::gst(static_cast<Acc*>(phase.largest) + at, largest[r]);
      simt::gst(phase.others + at, others[r]);
    }
  }
}

template <class Acc>
__device__ __forceinline__ double merge_row(const ContrastPhase& phase, int row) {
  const Acc* largest = static_cast<const Acc*>(phase.largest) + index_t(row) * phase.splits;
  Acc highest = 0;
#pragma unroll 1
  for (int split = 0; split < phase.splits; ++split) highest = maximum(highest, simt::gld(largest + split));
  double others = 0;
#pragma unroll 1
  for (int split = 0; split < phase.splits; ++split) {
    others += simt::gld(phase.others + index_t(row) * phase.splits + split) *
              double(std::exp(simt::gld(largest + split) - highest));
  }
  return row_loss(double(highest), others);
}

// Row losses and their mean, by the first block.
template <class Acc>
__device__ __forceinline__ void loss_phase(const ContrastPhase& phase) {
  if (blockIdx.x != 0) return;
  SIMT_DYN_SHARED(double, scratch);
  const int batch = int(phase.call.batch);
  const bool mse = phase.objective == Objective::mse;
  double total = 0, distance = 0;
#pragma unroll 1
  for (int row = thread(); row < batch; row += block_threads) {
    const double loss = mse ? 0 : merge_row<Acc>(phase, row);
    const double positive = simt::gld(phase.positives + row);
    simt::gst(phase.call.row_losses + row, loss);
    total += mse ? unit_square(positive) / double(phase.pixels) : loss;
    distance += 1 - positive;
  }
  double loss = block_sum(total, scratch) / double(batch);
  distance = block_sum(distance, scratch) / double(batch);
  if (phase.consistency > 0) loss += phase.consistency * distance;
  if (thread() == 0) assign(phase.loss, loss);
}

// ---- Backward

// Weights g_ij = probability_ij / (tau B); their sums with the keys and with the rows, 64 elements of a row at a time.
template <class Acc>
__device__ __forceinline__ void contrast_backward_phase(const ContrastBackward& call) {
  const Contrast& forward = call.forward;
  const int batch = int(forward.batch), row_tiles = tiles(batch, tile_rows);
  const int length = int(forward.length), slices = int(tiles(length, tile_depth));
  const Acc inverse = Acc(1 / forward.temperature);
  const Acc scale = Acc(value_of(call.grad_loss) / (forward.temperature * double(batch)));
#pragma unroll 1
  for (int item = int(blockIdx.x); item < 2 * row_tiles * slices; item += int(gridDim.x)) {
    const bool keys = item >= row_tiles * slices;  // the gradient of the keys, whose positives are the columns'
    const int slice = int(item % slices);
    const int first = item / slices % row_tiles * tile_rows, row = first + 2 * warp();
    const Tile<Acc> tile(keys ? forward.keys : forward.rows, keys ? forward.rows : forward.keys, batch, length);
    Acc grads[2][2] = {};
    double others[2] = {0, 0};
#pragma unroll 1
    for (int start = 0; start < batch; start += tile_columns) {
      const int column = start + lane();
      Acc weights[2];
      tile.similarities(first, start, slice, weights);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int owner = keys ? column : row + r;  // whose softmax it is
        if (column < batch && row + r < batch && column != row + r) {
          const Acc positive = Acc(simt::gld(forward.positives + owner)),
                    loss = Acc(simt::gld(forward.row_losses + owner));
          weights[r] = std::exp((weights[r] - positive) * inverse - loss) * scale;
        } else {
          weights[r] = 0;
        }
        others[r] += double(warp_sum(weights[r]));
      }
#pragma unroll 2
      for (int j = 0; j < tile_columns; ++j) {
        const Acc *values = tile.columns + j * tile_stride + lane(), *rest = values + warp_threads;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const Acc weight = __shfl_sync(all_lanes, weights[r], j);
          grads[r][0] += weight * *values;
          grads[r][1] += weight * *rest;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row + r >= batch) continue;
      Acc* grad = static_cast<Acc*>(keys ? call.grad_keys : call.grad_rows) + index_t(row + r) * length;
      for (int half = 0; half < 2; ++half) {
        const int k = slice * tile_depth + half * warp_threads + lane();
        if (k < length) simt::gst(grad + k, grads[r][half]);
      }
      if (!keys && slice == 0 && lane() == 0) simt::gst(call.grad_positives + row + r, -others[r]);
    }
    __syncthreads();
  }
}

}  // namespace cgc::CGC_ISA
