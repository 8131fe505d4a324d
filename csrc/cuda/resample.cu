// Stage resample, forward: heatmaps and a transform -> unit rows, keys and positives, as H x W algebra
// (docs/mathematics.md, section 2).
#include "resample.cuh"
#include "resample_warp.cuh"

namespace cgc::CGC_ISA {

// ---- The matrices of the crops, as products of tiles over the pixels of the view

struct CropMatrices {
  Resample call;
  void* to;  // [B, matrices_size]
};

// Where a pixel of either view lies on the map.
template <class Real>
struct alignas(16) CropPixel {
  CropSource<Real> source;
  int position;
};

// Adds cells [8 row, 8 row + 8) by [8 column, 8 column + 8) of P and Q, and of K, over eight pixels.
template <class Real>
__device__ __forceinline__ void add_pixels(const CropAxis& axis, const CropPixel<Real>* pixels, int count, int row,
                                           int column, Real (&pq)[4], Real (&k)[4]) {
  const Real unit = Real(1) / Real(2 * axis.size);
  const int left = 8 * row + fragment_row(), right = 8 * column + fragment_row();
  Real rows[4] = {}, seen[2] = {}, up[2] = {};
  unrolled<2>([&](int half) {
    if (fragment_column() + 4 * half >= count) return;
    const CropPixel<Real> pixel = pixels[fragment_column() + 4 * half];
    rows[2 * half] = hat(pixel.position, left, axis.size, unit);
    rows[2 * half + 1] = pixel.source.hat(left, axis.size, unit);
    up[half] = row == column ? rows[2 * half] : hat(pixel.position, right, axis.size, unit);
    seen[half] = row == column ? rows[2 * half + 1] : pixel.source.hat(right, axis.size, unit);
  });
  mma(pq, rows, seen);
  mma(k, rows, up);
}

// A block takes eight cells of an axis of one sample, rows of its matrices. A warp takes eight columns; where these are
// few, several share the pixels. Without a crop K alone is of use.
template <class Real>
__global__ void __launch_bounds__(block_threads) crop_matrices(const __grid_constant__ CropMatrices phase) {
  SIMT_DYN_SHARED(CropPixel<Real>, pixels);                       // [256]
  Real* tiles = reinterpret_cast<Real*>(pixels + block_threads);  // [parts, 3, 8, width]
  simt::release_successor();
  const Resample& call = phase.call;
  const int height = int(call.height), tiles_y = ceil_div(height, 8), side = int(blockIdx.y) >= tiles_y;
  const int row = int(blockIdx.y) - (side != 0 ? tiles_y : 0);
  CropAxis axis = crop_axis(call, side, blockIdx.x);
  if (axis.length == 0) axis.length = axis.size;
  const int cells = axis.cells, columns = ceil_div(cells, 8), width = 8 * columns, parts = block_warps / columns;
  const int column = warp() % columns, part = warp() / columns, rows = minimum(cells - 8 * row, 8);
  Real pq[4] = {}, k[4] = {};
  for (int base = 0; base < axis.size; base += block_threads) {
    const int count = minimum(block_threads, axis.size - base), pixel = base + thread();
    __syncthreads();
    if (thread() < count) {
      pixels[thread()] = {{axis, pixel, Real(1) / Real(2 * axis.size)}, upsampled_position(axis, pixel)};
    }
    __syncthreads();
    for (int first = 8 * part; part < parts && first < count; first += 8 * parts) {
      add_pixels(axis, pixels + first, count - first, row, column, pq, k);
    }
  }
#pragma unroll
  for (int i = 0; part < parts && i < 2; ++i) {
    Real* to = tiles + (part * matrix_count * 8 + fragment_row()) * width + 8 * column + 2 * fragment_column() + i;
    to[matrix_p * 8 * width] = pq[i];
    to[matrix_q * 8 * width] = pq[2 + i];
    to[matrix_k * 8 * width] = k[i];
  }
  __syncthreads();
  Real* matrices = static_cast<Real*>(phase.to) + index_t(blockIdx.x) * matrices_size(height, int(call.width));
  Real* to = matrices + first_matrix(side, height);
  each(matrix_count * 8 * width, [&](int i) {
    const int y = i / width, x = i % width, which = y / 8;
    for (int other = 1; other < parts; ++other) tiles[i] += tiles[other * matrix_count * 8 * width + i];
    if (y % 8 < rows && x < cells) simt::gst(to + (which * cells + 8 * row + y % 8) * cells + x, tiles[i]);
  });
  __syncthreads();
  // The rows of U add up to 1, so that those of K are U^T 1.
  Real* sums = matrices + first_matrix(1, height) + matrix_count * call.width * call.width + (side != 0 ? height : 0);
  each(rows, [&](int y) {
    Real sum = 0;
    for (int x = 0; x < cells; ++x) sum += tiles[(matrix_k * 8 + y) * width + x];
    simt::gst(sums + 8 * row + y, sum);
  });
}

const void* launch_crop_matrices(const Resample& call, Stream& stream) {
  const int height = int(call.height), width = int(call.width);
  const void* matrices = nullptr;
  with_resample_types(call, [&](auto, auto, auto real, auto, auto) {
    using Real = decltype(real);
    const CropMatrices phase{call, stream.take(call.batch * matrices_size(height, width) * index_t(sizeof(Real)))};
    matrices = phase.to;
    const dim3 grid(unsigned(call.batch), unsigned(ceil_div(height, 8) + ceil_div(width, 8)));
    const index_t tiles = block_warps * matrix_count * 8 * 8 * sizeof(Real);
    return stream.start(&crop_matrices<Real>, grid, block_threads * index_t(sizeof(CropPixel<Real>)) + tiles, phase);
  });
  return matrices;
}

// ---- The unit maps, a block a sample

struct ResampleForward {
  Resample call;
  MapShape shape;
  Heatmaps from;
  const void* matrices;  // [B, matrices_size]
  unsigned* counter;     // set to zero; or null
  float eps;             // that of the call
};

// P o P^T, Q o Q, P^T a P and K a K: one for each of four neighbouring threads. A sweep gives the first three of a
// warp.
enum MapProduct { product_seen, product_gram, product_adjoint, product_image, map_products };
constexpr int step = block_threads / map_products;  // positions that the block takes at once

template <bool warps, int entries, class Real>
__device__ __forceinline__ void multiply_maps(const Resample& call, const ResampleShared<Real>& shared, index_t sample,
                                              Real (&out)[entries]) {
  const int product = thread() % map_products;
  const CropMatrix matrix = product == product_image ? matrix_k : product == product_gram ? matrix_q : matrix_p;
  multiply_map<map_products>(shared, matrix, product == product_adjoint,
                             product <= product_gram ? shared.original : shared.augmented, out);
  if constexpr (warps) {
    __syncthreads();
    sweep(call, shared, sample, true);
    if (product == product_image) return;
    const int cells = shared.shape.positions;
    each_entry<entries>(thread() / map_products, step, cells,
                        [&](int e, int p) { out[e] = swept(shared, product, p, cells); });
  }
}

// The unit maps of one sample, and its positive. values: of the thread's product.
template <class Acc, class State, int entries, class Real>
__device__ __forceinline__ void write_unit_maps(const Resample& call, const ResampleShared<Real>& shared,
                                                index_t sample, const Real (&values)[entries]) {
  const int positions = shared.shape.positions, product = thread() % map_products;
  const auto each_value = [&](auto&& visit) { each_entry<entries>(thread() / map_products, step, positions, visit); };
  Real along = 0;  // <a, T o>, |T o|^2, or |a|^2
  each_value(
      [&](int e, int p) { along += (product == product_gram ? shared.original : shared.augmented)[p] * values[e]; });
#pragma unroll
  for (int distance = map_products; distance < warp_threads; distance *= 2) {
    along += __shfl_xor_sync(all_lanes, along, distance);
  }
  if (lane() < map_products) shared.scratch[warp() * map_products + product] = along;
  __syncthreads();
  Real sums[map_products] = {};
  unrolled<block_warps * map_products>([&](int i) { sums[i % map_products] += shared.scratch[i]; });
  const Real of_seen = inverse_root(sums[product_gram]), of_augmented = inverse_root(sums[product_image]);
  if (thread() == 0) simt::gst(call.positives + sample, widened(sums[product_seen] * of_augmented * of_seen));
  const bool paper = call.objective == Objective::paper, image = product == product_image;
  const bool kept = product == product_gram || product == product_adjoint || paper == image;
  const Real scale = product <= product_gram ? of_seen : of_augmented;
  auto* rows = static_cast<Acc*>(call.rows) + sample * positions;
  auto* keys = static_cast<Acc*>(call.keys) + sample * positions;
  auto* state = static_cast<State*>(call.state) + (sample * 3 + (image ? 0 : product)) * positions;
  const bool written = call.objective != Objective::mse;
  each_value([&](int e, int p) {
    if (kept) simt::gst(state + p, State(values[e] * scale));
    if (!kept && written) simt::gst((image ? keys : rows) + p, Acc(values[e] * scale));
    if (image && written) simt::gst((paper ? keys : rows) + p, Acc(shared.augmented[p] * of_augmented));
  });
}

template <class Acc, class State, class Real, int entries, bool warps>
__global__ void __launch_bounds__(block_threads, 1) resample_forward(const __grid_constant__ ResampleForward phase) {
  const Resample& call = phase.call;
  const MapShape& shape = phase.shape;
  const ResampleShared<Real> shared(shape);
  const index_t sample = blockIdx.x;
  Acc heatmaps[entries][2];
  const auto each_position = [&](auto&& visit) {
    each_entry<entries>(thread(), block_threads, shape.positions, visit);
  };
  simt::wait_for_predecessor();
  simt::release_successor();
  if (sample == 0 && thread() == 0 && phase.counter != nullptr) simt::gst(phase.counter, 0u);
  each_position([&](int e, int p) { finish_heatmaps(phase.from, sample, p, heatmaps[e]); });
  shared.load_matrices(phase.matrices, sample);
  each_position(
      [&](int e, int p) { shared.middle[p] = heatmaps[e][0], shared.middle[shape.positions + p] = heatmaps[e][1]; });
  __syncthreads();
  const Real eps = sizeof(Real) == 4 ? Real(phase.eps) : Real(call.eps),
             sum = heatmap_sum(shared.middle, shared.sums(), shape),
             aug_sum = heatmap_sum(shared.middle + shape.positions, shared.sums(), shape);
  each_position([&](int e, int p) {
    shared.original[p] = normalised_map(Real(heatmaps[e][0]), sum, eps);
    shared.augmented[p] = normalised_map(Real(heatmaps[e][1]), aug_sum, eps);
  });
  __syncthreads();
  Real values[map_products * entries];
  multiply_maps<warps>(call, shared, sample, values);
  write_unit_maps<Acc, State>(call, shared, sample, values);
}

int launch_resample(const Resample& call, const Heatmaps& heatmaps, const void* matrices, unsigned* counter,
                    Stream& stream) {
  return with_resample_types(call, [&](auto acc, auto state, auto real, auto entries, auto warps) {
    using Real = decltype(real);
    const ResampleForward phase{call, MapShape(call), heatmaps, matrices, counter, float(call.eps)};
    return stream.start(&resample_forward<decltype(acc), decltype(state), Real, entries, warps>, unsigned(call.batch),
                        resample_bytes<Real>(call), phase);
  });
}

}  // namespace cgc::CGC_ISA
