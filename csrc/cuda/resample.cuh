// Stage resample, what its kernels share: one sample in shared memory, its axes' matrices, and products with them.
#pragma once

#include "cam.cuh"

#include "../common/resample_crop.h"

namespace cgc::CGC_ISA {

constexpr index_t shared_limit = 99 * 1024;  // what every device since compute capability 8.0 gives a block
constexpr int most_numbers = 4;              // of one block_sums

// Sums of a float32 map are taken in units of 2^32, lest they overflow: a view has up to 2^32 pixels.
template <class Real>
constexpr Real sum_unit = sizeof(Real) == 4 ? Real(1) / Real(4294967296.0) : Real(1);

// At least a number for every thread.
CGC_HD inline int slots(int positions) { return maximum(positions, block_threads); }

// The matrices of a crop, of both axes, [cells, cells] each: P = U^T R U, Q = (R U)^T R U and K = U^T U of y, then of x
// (docs/mathematics.md, section 2). Behind them U^T 1 of both axes, what each cell adds to the sum of an upsampled map.
enum CropMatrix { matrix_p, matrix_q, matrix_k, matrix_count };

CGC_HD inline int matrices_size(int height, int width) {
  return matrix_count * (height * height + width * width) + height + width;
}
CGC_HD inline int first_matrix(int side, int height) { return side == 0 ? 0 : matrix_count * height * height; }

struct MapShape {
  explicit MapShape(const Resample& call)
      : height(int(call.height)), width(int(call.width)), positions(height * width), by_width(width) {}

  int height, width, positions;
  Divisor by_width;
};

// Shared memory of one sample.
template <class Real>
struct ResampleShared {
  const MapShape& shape;
  Real* matrices;              // as launch_crop_matrices() leaves them
  Real *original, *augmented;  // [P], normalised maps
  Real* middle;                // [4, P], or three times a number for every thread
  Real* scratch;               // [warps, most_numbers]
  Real* table;                 // [table_size], for warps alone

  CGC_HD static int middle_size(int positions) { return maximum(4 * positions, 3 * slots(positions)); }
  CGC_HD static int size(int height, int width) {
    return matrices_size(height, width) + 2 * height * width + middle_size(height * width) + block_warps * most_numbers;
  }
  // As many as fit, of at most 2048, and at least what one pixel of a warp takes.
  CGC_HD static int table_size(int height, int width) {
    const int room = int(shared_limit / sizeof(Real)) - size(height, width);
    return maximum(minimum(room, 2048), 2 * (height + width));
  }

  __device__ explicit ResampleShared(const MapShape& shape) : shape(shape) {
    SIMT_DYN_SHARED(Real, memory);
    matrices = memory;
    original = memory + matrices_size(shape.height, shape.width);
    augmented = original + shape.positions;
    middle = augmented + shape.positions;
    scratch = middle + middle_size(shape.positions);
    table = scratch + block_warps * most_numbers;
  }
  // side: 0 for y, 1 for x
  __device__ __forceinline__ Real* matrix(int side, int which) const {
    const int cells = side == 0 ? shape.height : shape.width;
    return matrices + first_matrix(side, shape.height) + which * cells * cells;
  }
  __device__ __forceinline__ const Real* sums() const { return original - shape.height - shape.width; }

  // The sample's matrices, of all samples'.
  __device__ __forceinline__ void load_matrices(const void* all, index_t sample) const {
    const int size = matrices_size(shape.height, shape.width);
    const Real* from = static_cast<const Real*>(all) + sample * size;
#pragma unroll 4
    for (int i = thread(); i < size; i += block_threads) matrices[i] = simt::gld(from + i);
  }
};

// ---- Maps

// What a position adds to the sum of an upsampled map. sums: U^T 1 of both axes.
template <class Real>
__device__ __forceinline__ Real cell_share(const Real* sums, const MapShape& shape, int p) {
  const int row = shape.by_width.quotient(p);
  return sums[row] * sums[shape.height + p - row * shape.width];
}

// s of a heatmap [P] in units of sum_unit; every warp adds it up for itself.
template <class Real>
__device__ __forceinline__ Real heatmap_sum(const Real* heatmap, const Real* sums, const MapShape& shape) {
  Real sum = 0;
  for (int p = lane(); p < shape.positions; p += warp_threads) {
    sum += cell_share(sums, shape, p) * (heatmap[p] * sum_unit<Real>);
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

// visit(entry, position) for first, first + step, ..., at most `entries`.
template <int entries, class F>
__device__ __forceinline__ void each_entry(int first, int step, int positions, F&& visit) {
  unrolled<entries>([&](int e) {
    const int p = first + e * step;
    if (p < positions) visit(e, p);
  });
}

// left m right^T, or left^T m right, of one of the matrices of both axes and a map m [H, W]. `lanes` neighbouring
// threads share a position, for which each may have a product of its own: out [entries], at positions thread / lanes,
// and so on, at a step of as many positions as the block takes. One barrier inside.
template <int lanes, int entries, class Real>
__device__ __forceinline__ void multiply_map(const ResampleShared<Real>& shared, CropMatrix matrix, bool transposed,
                                             const Real* map, Real (&out)[entries]) {
  const int height = shared.shape.height, width = shared.shape.width, positions = shared.shape.positions;
  const int row = transposed ? 1 : height, down = transposed ? height : 1;
  const int column = transposed ? 1 : width, across = transposed ? width : 1;
  const Real *left = shared.matrix(0, matrix), *right = shared.matrix(1, matrix);
  Real* middle = shared.middle + thread() % lanes * positions;
  each_entry<entries>(thread() / lanes, block_threads / lanes, positions, [&](int, int p) {
    const int i = shared.shape.by_width.quotient(p), j = p - i * width;
    Real sum = 0;
#pragma unroll 4
    for (int k = 0; k < height; ++k) sum += left[i * row + k * down] * map[k * width + j];
    middle[p] = sum;
  });
  __syncthreads();
  each_entry<entries>(thread() / lanes, block_threads / lanes, positions, [&](int e, int p) {
    const int i = shared.shape.by_width.quotient(p), j = p - i * width;
    Real sum = 0;
#pragma unroll 4
    for (int k = 0; k < width; ++k) sum += middle[i * width + k] * right[j * column + k * across];
    out[e] = sum;
  });
}

// ---- Launching

template <class Real>
index_t resample_bytes(const Resample& call) {
  const int height = int(call.height), width = int(call.width);
  const int table = call.inverses == nullptr ? 0 : ResampleShared<Real>::table_size(height, width);
  return (ResampleShared<Real>::size(height, width) + table) * index_t(sizeof(Real));
}

// Calls visit(acc, state, real, entries, warps) with values of the types of heatmaps, rows and keys, of what is kept
// for the backward, and of what is computed with; and with constants. Warps are swept over in double.
template <class F>
int with_resample_types(const Resample& call, F&& visit) {
  const auto with_entries = [&](auto acc, auto state, auto real, auto warps) {
    if (call.height * call.width > block_threads)
      return visit(acc, state, real, std::integral_constant<int, 4>{}, warps);
    return visit(acc, state, real, std::integral_constant<int, 1>{}, warps);
  };
  const auto with_states = [&](auto warps) {
    if (call.float64) return with_entries(double{}, double{}, double{}, warps);
    if (call.objective == Objective::mse) return with_entries(float{}, double{}, double{}, warps);
    using Real = std::conditional_t<decltype(warps)::value, double, float>;
    return with_entries(float{}, float{}, Real{}, warps);
  };
  return call.inverses == nullptr ? with_states(std::false_type{}) : with_states(std::true_type{});
}

struct PositiveGradient {
  double mse, consistency;  // for a gradient 1 of the loss: of the mse objective, of the term
  Scalar grad_loss;         // of the fused loss; null where grad_positives is all there is
};

// The matrices of all samples, [B, matrices_size], in double where the stage computes in double. They follow from the
// transform alone: a kernel to start first, beside which others stream.
const void* launch_crop_matrices(const Resample& call, Stream& stream);

// counter: set to zero, for a later kernel's tickets; or null. mask: whether gradients go on through the ReLU of the
// heatmaps.
int launch_resample(const Resample& call, const Heatmaps& heatmaps, const void* matrices, unsigned* counter,
                    Stream& stream);
int launch_resample_backward(const ResampleBackward& call, const void* matrices, const PositiveGradient& positive,
                             bool mask, Stream& stream);

}  // namespace cgc::CGC_ISA
