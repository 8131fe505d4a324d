// Stage resample: the matrices of the crops, as products of tiles over the pixels of the view (docs/mathematics.md,
// section 2).
#include "resample.cuh"

namespace cgc::CGC_ISA {
namespace {

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

}  // namespace

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

}  // namespace cgc::CGC_ISA
