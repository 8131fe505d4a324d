// Stage contrast, what its kernels share: tiles of 16 x 64 similarities on tensor cores. A block takes 16 rows, and 64
// columns at a time, eight for each warp; rows and columns come in slices of 64 elements. [B, B] is never stored.
#pragma once

#include "platform.cuh"

namespace cgc::CGC_ISA {

constexpr int tile_rows = 16, tile_columns = 64, slice = 64;
constexpr int tile_stride = slice + 4;  // no bank conflicts where a warp reads fragments by rows

// One slice of 16 rows and 64 columns, and a tile of numbers, in shared memory.
template <class Acc>
struct ContrastTiles {
  Acc *rows, *columns, *weights;  // [16, stride], [64, stride], [16, stride]

  static constexpr int elements = (2 * tile_rows + tile_columns) * tile_stride;

  __device__ explicit ContrastTiles(Acc* memory)
      : rows(memory), columns(memory + tile_rows * tile_stride), weights(columns + tile_columns * tile_stride) {}
};

// `count` rows of values [B, N] from row `first` and element `depth` on, zero outside: all loads on their way at once,
// then into a tile. A thread keeps to one element.
template <int count, class Acc>
struct SliceLoads {
  static constexpr int step = block_threads / slice, numbers = count / step;
  Acc value[numbers];

  __device__ __forceinline__ void start(const void* values, int first, int depth, int batch, int length) {
    const int k = depth + thread() % slice, row = first + thread() / slice;
    const Acc* from = static_cast<const Acc*>(values) + index_t(row) * length + k;
    unrolled<numbers>([&](int i) {
      value[i] = k < length && row + i * step < batch ? simt::gld(element(from, i * step * length)) : Acc(0);
    });
  }
  __device__ __forceinline__ void finish(Acc* tile) const {
    Acc* to = tile + thread() / slice * tile_stride + thread() % slice;
    unrolled<numbers>([&](int i) { to[i * step * tile_stride] = value[i]; });
  }
};

// Adds to c the products of 16 rows of a tile with the warp's eight columns over `depth` elements, which lie at
// `stride` from `column` on, this lane's first.
template <int stride, class Acc>
__device__ __forceinline__ void add_products(const Acc* rows, const Acc* column, int depth, Acc (&c)[4]) {
  const Acc *upper = rows + fragment_row() * tile_stride + fragment_column(), *lower = upper + 8 * tile_stride;
#pragma unroll 2
  for (int k = 0; k < depth; k += 8) {
    mma(c, {upper[k], lower[k], upper[k + 4], lower[k + 4]}, {column[k * stride], column[(k + 4) * stride]});
  }
}

// Rows `a` and columns `b`, [B, N] each.
struct ContrastSides {
  const void *a, *b;
  int batch, length;
};

// A slice of 64 rows of b into a tile that the block may still read when it begins.
template <class Acc>
__device__ __forceinline__ void load_columns(const ContrastSides& sides, int column, int depth, Acc* tile) {
  constexpr int together = sizeof(Acc) == 8 ? tile_columns / 2 : tile_columns;  // lest registers spill
#pragma unroll
  for (int first = 0; first < tile_columns; first += together) {
    SliceLoads<together, Acc> loads;
    loads.start(sides.b, column + first, depth, sides.batch, sides.length);
    if (first == 0) __syncthreads();
    loads.finish(tile + first * tile_stride);
  }
}

// Adds to c the similarities of the 16 rows from `row` with the warp's columns of the 64 from `column`, in fragments.
// Of one slice the rows stay in shared memory from step to step, and its columns until the next one.
template <class Acc, bool one_slice>
__device__ __forceinline__ void similarities(const ContrastSides& sides, int row, int column, bool first,
                                             const ContrastTiles<Acc>& tiles, Acc (&c)[4]) {
  const Acc* mine = tiles.columns + (8 * warp() + fragment_row()) * tile_stride + fragment_column();
#pragma unroll 1
  for (int depth = 0; depth < sides.length; depth += slice) {
    const bool anew = !one_slice || first;
    SliceLoads<tile_rows, Acc> rows;
    if (anew) rows.start(sides.a, row, depth, sides.batch, sides.length);
    load_columns(sides, column, depth, tiles.columns);
    if (anew) rows.finish(tiles.rows);
    __syncthreads();
    add_products<1>(tiles.rows, mine, minimum(slice, sides.length - depth), c);
  }
}

// The row and the column, within their tiles, of a number of the warp's fragment.
__device__ __forceinline__ int row_of(int i) { return fragment_row() + i / 2 * 8; }
__device__ __forceinline__ int column_of(int i) { return 8 * warp() + 2 * fragment_column() + i % 2; }

CGC_HD inline int row_tiles(index_t count) { return int((count + tile_rows - 1) / tile_rows); }
CGC_HD inline int column_tiles(index_t batch) { return int((batch + tile_columns - 1) / tile_columns); }

// ---- Launching

// Calls visit(acc, slices) with the constants that hold the rows.
template <class F>
int with_contrast_types(const Contrast& call, F&& visit) {
  const auto with_slices = [&](auto acc) {
    if (call.length <= slice) return visit(acc, std::integral_constant<int, 1>{});
    if (call.length <= 4 * slice) return visit(acc, std::integral_constant<int, 4>{});
    return visit(acc, std::integral_constant<int, 16>{});
  };
  return call.float64 ? with_slices(double{}) : with_slices(float{});
}

struct ContrastForward {
  Contrast call;
  Scalar loss;
  Objective objective;
  double consistency, pixels;  // pixels: of the view, for the mse objective
  unsigned* counter;           // of blocks that are done, zero before; null: the loss takes a kernel of its own

  int splits;  // of the columns
  void* sums;  // LogSum<acc> [count, splits], of the logits of a row, relative to its positive
};

// Of a call without splits and sums. Of the mse objective there is only the loss.
int launch_contrast(ContrastForward phase, Stream& stream);
int launch_contrast_backward(const ContrastBackward& call, Stream& stream);

}  // namespace cgc::CGC_ISA
