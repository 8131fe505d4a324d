// Stage resample, what its kernels share: one sample in shared memory, its axes' matrices, and products with them.
#pragma once

#include "launch.cuh"

#include "../common/crop.h"

namespace cgc::CGC_ISA {

constexpr index_t shared_limit = 99 * 1024;  // what every device since compute capability 8.0 gives a block
constexpr int most_numbers = 4;              // of one block_sums

// Acc: of heatmaps, rows and keys. State: of what is kept for the backward. Real: what is computed with.
template <class Acc_, class State_, class Real_>
struct ResampleTypes {
  using Acc = Acc_;
  using State = State_;
  using Real = Real_;
};

// Sums of a float32 map are taken in units of 2^32, lest they overflow: a view has up to 2^32 pixels.
template <class Real>
constexpr Real sum_unit = sizeof(Real) == 4 ? Real(1) / Real(4294967296.0) : Real(1);

// At least a number for every thread.
CGC_HD inline int slots(int positions) { return maximum(positions, block_threads); }

// The matrices of a crop, of both axes, [cells, cells] each: P = U^T R U, Q = (R U)^T R U and K = U^T U of y, then of x
// (docs/mathematics.md, section 2).
enum CropMatrix { matrix_p, matrix_q, matrix_k, matrix_count };

CGC_HD inline int matrices_size(int height, int width) { return matrix_count * (height * height + width * width); }

// A map of one tile an axis has fewer pairs of tiles than a block has warps: four share the pixels of one, each into
// matrices of its own.
CGC_HD inline int pixel_parts(int height, int width) { return maximum(height, width) <= 8 ? block_warps / 2 : 1; }

// Shared memory of one sample.
template <class Real>
struct ResampleShared {
  int height, width;
  Real* matrices;              // and those of the other parts behind them
  Real *original, *augmented;  // [P], normalised maps
  Real* middle;                // [4, P], or three times a number for every thread
  Real* sums;                  // [H + W], of cell_sums
  Real* scratch;               // [warps, most_numbers]
  Real* table;                 // [table_size], for warps alone

  CGC_HD static int middle_size(int positions) { return maximum(4 * positions, 3 * slots(positions)); }
  CGC_HD static int size(int height, int width) {
    return pixel_parts(height, width) * matrices_size(height, width) + 2 * height * width +
           middle_size(height * width) + height + width + block_warps * most_numbers;
  }
  // As many as fit, of at most 2048, and at least what one pixel of a warp takes.
  CGC_HD static int table_size(int height, int width) {
    const int room = int(shared_limit / sizeof(Real)) - size(height, width);
    return maximum(minimum(room, 2048), 2 * (height + width));
  }

  __device__ explicit ResampleShared(const Resample& call) : height(int(call.height)), width(int(call.width)) {
    SIMT_DYN_SHARED(Real, memory);
    matrices = memory;
    original = memory + pixel_parts(height, width) * matrices_size(height, width);
    augmented = original + height * width;
    middle = augmented + height * width;
    sums = middle + middle_size(height * width);
    scratch = sums + height + width;
    table = scratch + block_warps * most_numbers;
  }
  // side: 0 for y, 1 for x
  __device__ __forceinline__ Real* matrix(int side, int which) const {
    return matrices + (side == 0 ? which * height * height : matrix_count * height * height + which * width * width);
  }
};

// ---- Matrices, as products of tiles over the pixels of the view

// Cells [8 row, 8 row + 8) by [8 column, 8 column + 8) of P and Q, and of K, over every `parts`-th group of 8 pixels.
template <class Real>
__device__ __forceinline__ void add_pixels(const CropAxis& axis, int row, int column, int part, int parts,
                                           Real (&pq)[4], Real (&k)[4]) {
  const Real unit = Real(1) / Real(2 * axis.size);
  const int left = 8 * row + fragment_row(), right = 8 * column + fragment_row();
#pragma unroll 2
  for (int base = 8 * part; base < axis.size; base += 8 * parts) {
    Real rows[4] = {}, seen[2] = {}, up[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel = base + fragment_column() + 4 * half;
      if (pixel >= axis.size) continue;
      const int position = upsampled_position(axis, pixel);
      rows[2 * half] = hat(position, left, axis.size, unit);
      up[half] = row == column ? rows[2 * half] : hat(position, right, axis.size, unit);
      if (axis.length == 0) continue;
      const CropSource<Real> source(axis, pixel, unit);
      rows[2 * half + 1] = source.hat(left, axis.size, unit);
      seen[half] = row == column ? rows[2 * half + 1] : source.hat(right, axis.size, unit);
    }
    mma(pq, rows, seen);
    mma(k, rows, up);
  }
}

// The matrices of one sample, its crop's only where there is one. Ends before the barrier that the caller needs, which
// add_parts() follows.
template <class Real>
__device__ __forceinline__ void crop_matrices(const Resample& call, index_t sample, const ResampleShared<Real>& to) {
  const int parts = pixel_parts(to.height, to.width);
#pragma unroll 1
  for (int side = 0; side < 2; ++side) {
    const int cells = side == 0 ? to.height : to.width, tiles = ceil_div(cells, 8);
    // Half of the warps begin with either side.
#pragma unroll 1
    for (int item = (warp() + side * block_warps / 2) % block_warps; item < tiles * tiles * parts;
         item += block_warps) {
      const int pair = item / parts, part = item % parts, row = pair / tiles, column = pair % tiles;
      Real pq[4] = {}, k[4] = {};
      add_pixels(crop_axis(call, side, sample), row, column, part, parts, pq, k);
      Real* const p = to.matrix(side, matrix_p) + part * matrices_size(to.height, to.width);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int y = 8 * row + fragment_row(), x = 8 * column + 2 * fragment_column() + i;
        if (y >= cells || x >= cells) continue;
        p[matrix_p * cells * cells + y * cells + x] = pq[i];
        p[matrix_q * cells * cells + y * cells + x] = pq[2 + i];
        p[matrix_k * cells * cells + y * cells + x] = k[i];
      }
    }
  }
}

template <class Real>
__device__ __forceinline__ void add_parts(const ResampleShared<Real>& shared) {
  if (pixel_parts(shared.height, shared.width) == 1) return;
  const int size = matrices_size(shared.height, shared.width);
  each(size, [&](int i) {
    Real sum = shared.matrices[i];
    for (int part = 1; part < block_warps / 2; ++part) sum += shared.matrices[part * size + i];
    shared.matrices[i] = sum;
  });
}

// U^T 1 of both axes, [H] and then [W]: what each cell adds to the sum of an upsampled map. A warp a cell.
template <class Real>
__device__ __forceinline__ void cell_sums(const Resample& call, Real* sums) {
  const int height = int(call.height), width = int(call.width);
#pragma unroll 1
  for (int i = warp(); i < height + width; i += block_warps) {
    const bool x = i >= height;
    const CropAxis axis{int(x ? call.size_w : call.size_h), x ? width : height, 0, 0, false};
    const Real unit = Real(1) / Real(2 * axis.size);
    Real sum = 0;
#pragma unroll 4
    for (int pixel = lane(); pixel < axis.size; pixel += warp_threads) {
      sum += hat(upsampled_position(axis, pixel), x ? i - height : i, axis.size, unit);
    }
    sum = warp_sum(sum);
    if (lane() == 0) sums[i] = sum;
  }
}

// ---- Maps

// s of a heatmap [P] in units of sum_unit; every warp adds it up for itself.
template <class Real, class T>
__device__ __forceinline__ Real heatmap_sum(const T* heatmap, const Real* sums, int height, int width) {
  Real sum = 0;
  for (int p = lane(); p < height * width; p += warp_threads) {
    const int row = p / width;
    sum += sums[row] * sums[height + p - row * width] * (Real(heatmap[p]) * sum_unit<Real>);
  }
  return warp_sum(sum);
}

// value / (s + eps) for a value and a sum in units of sum_unit; 0 where neither sum nor eps is left of float32.
template <class Real>
__device__ __forceinline__ Real share_of_sum(Real value, Real sum, Real eps) {
  const Real divisor = sum + eps * sum_unit<Real>;
  return divisor == 0 ? Real(0) : value / divisor;
}

// m = M / (s + eps) + eps
template <class Real>
__device__ __forceinline__ Real normalised_map(Real heatmap, Real sum, Real eps) {
  return share_of_sum(heatmap * sum_unit<Real>, sum, eps) + eps;
}

// visit(entry, position) for the positions of this thread of `threads`, at most `entries`.
template <int entries, int threads = block_threads, class F>
__device__ __forceinline__ void each_entry(int positions, F&& visit) {
#pragma unroll
  for (int e = 0; e < entries; ++e) {
    const int p = thread() % threads + e * threads;
    if (p < positions) visit(e, p);
  }
}

// left m right^T, or left^T m right, of one of the matrices of both axes; m is [H, W].
template <class Real>
struct Product {
  CropMatrix matrix;
  bool transposed;
  const Real* map;
};

// out[n] = the n-th product at the thread's positions. One barrier inside.
template <int count, int entries, class Real>
__device__ __forceinline__ void multiply_maps(const ResampleShared<Real>& shared,
                                              const Product<Real> (&products)[count], Real (*out)[entries]) {
  const int height = shared.height, width = shared.width, positions = height * width;
  each_entry<entries>(positions, [&](int, int at) {
    const int i = at / width, j = at - i * width;
    Real sums[count] = {};
#pragma unroll count == 1 ? 4 : 2
    for (int k = 0; k < height; ++k) {
#pragma unroll
      for (int n = 0; n < count; ++n) {
        const Real* left = shared.matrix(0, products[n].matrix);
        sums[n] += left[products[n].transposed ? k * height + i : i * height + k] * products[n].map[k * width + j];
      }
    }
#pragma unroll
    for (int n = 0; n < count; ++n) shared.middle[n * positions + at] = sums[n];
  });
  __syncthreads();
  each_entry<entries>(positions, [&](int e, int at) {
    const int i = at / width, j = at - i * width;
    Real sums[count] = {};
#pragma unroll count == 1 ? 4 : 2
    for (int k = 0; k < width; ++k) {
#pragma unroll
      for (int n = 0; n < count; ++n) {
        const Real* right = shared.matrix(1, products[n].matrix);
        sums[n] += shared.middle[n * positions + i * width + k] *
                   right[products[n].transposed ? k * width + j : j * width + k];
      }
    }
#pragma unroll
    for (int n = 0; n < count; ++n) out[n][e] = sums[n];
  });
}

// ---- Launching

template <class Real>
index_t resample_bytes(const Resample& call) {
  const int height = int(call.height), width = int(call.width);
  const int table = call.inverses == nullptr ? 0 : ResampleShared<Real>::table_size(height, width);
  return (ResampleShared<Real>::size(height, width) + table) * index_t(sizeof(Real));
}

// Calls visit(types, entries, warps) with constants. Warps are swept over in double.
template <class F>
int with_resample_types(const Resample& call, F&& visit) {
  const auto with_entries = [&](auto types, auto warps) {
    if (call.height * call.width <= block_threads) return visit(types, std::integral_constant<int, 1>{}, warps);
    return visit(types, std::integral_constant<int, 4>{}, warps);
  };
  const auto with_states = [&](auto warps) {
    if (call.float64) return with_entries(ResampleTypes<double, double, double>{}, warps);
    if (call.objective == Objective::mse) return with_entries(ResampleTypes<float, double, double>{}, warps);
    using Real = std::conditional_t<decltype(warps)::value, double, float>;
    return with_entries(ResampleTypes<float, float, Real>{}, warps);
  };
  return call.inverses == nullptr ? with_states(std::false_type{}) : with_states(std::true_type{});
}

struct PositiveGradient {
  double mse, consistency;  // for a gradient 1 of the loss: of the mse objective, of the term
  Scalar grad_loss;         // of the fused loss; null where grad_positives is all there is
};

// counter: set to zero, for a later kernel's tickets; or null. mask: whether gradients go on through the ReLU of the
// heatmaps.
int launch_resample(const Resample& call, const Heatmaps& heatmaps, unsigned* counter, Stream& stream);
int launch_resample_backward(const ResampleBackward& call, const PositiveGradient& positive, bool mask, Stream& stream);

}  // namespace cgc::CGC_ISA
