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

// Adds to c the products of 16 rows of a tile with the warp's eight columns over `depth` elements, zero up to a
// multiple of 32, which lie at `stride` from `column` on, this lane's first. Several sums, which do not wait for each
// other.
template <int stride, class Acc>
__device__ __forceinline__ void add_products(const Acc* rows, const Acc* column, int depth, Acc (&c)[4]) {
  const Acc *upper = rows + fragment_row() * tile_stride + fragment_column(), *lower = upper + 8 * tile_stride;
  constexpr int chains = sizeof(Acc) == 8 ? 2 : 4;
  Acc sums[chains][4] = {};
#pragma unroll 1
  for (int first = 0; first < depth; first += 8 * chains) {
    unrolled<chains>([&](int i) {
      const int k = first + 8 * i;
      mma(sums[i], {upper[k], lower[k], upper[k + 4], lower[k + 4]}, {column[k * stride], column[(k + 4) * stride]});
    });
  }
  unrolled<4 * chains>([&](int i) { c[i % 4] += sums[i / 4][i % 4]; });
}

// Rows `a` and columns `b`, [B, N] each.
struct ContrastSides {
  const void *a, *b;
  int batch, length;
};

// Slices of 16 rows and of 64 columns. While they are multiplied the next are on their way, as far as registers do.
template <class Acc>
struct SliceStream {
  static constexpr bool ahead = sizeof(Acc) == 4;
  const ContrastSides& sides;
  const ContrastTiles<Acc>& tiles;
  int row;
  bool rows_stay = false;  // of one slice, when they are there
  int column = 0, depth = 0;
  SliceLoads<tile_rows, Acc> rows;
  SliceLoads<tile_columns, Acc> columns;

  __device__ __forceinline__ void load() {
    columns.start(sides.b, column, depth, sides.batch, sides.length);
    if (!rows_stay) rows.start(sides.a, row, depth, sides.batch, sides.length);
  }
  __device__ __forceinline__ void start(int next_column, int next_depth) {
    column = next_column, depth = next_depth;
    if (ahead) load();
  }
  // Into the tiles, which the block may still read when it begins.
  __device__ __forceinline__ void finish(bool with_rows) {
    if (!ahead) load();
    __syncthreads();
    columns.finish(tiles.columns);
    if (with_rows) rows.finish(tiles.rows);
    __syncthreads();
  }

  // Adds to c the similarities of the rows with the warp's columns of the 64 whose first slice has been started, in
  // fragments. After the last of their slices comes that at next_depth of the columns from `next`.
  __device__ __forceinline__ void add_similarities(int next, int next_depth, Acc (&c)[4]) {
    const Acc* mine = tiles.columns + (8 * warp() + fragment_row()) * tile_stride + fragment_column();
#pragma unroll 1
    for (int k = 0; k < sides.length; k += slice) {
      finish(!rows_stay);
      rows_stay = sides.length <= slice;
      const bool last = k + slice >= sides.length;
      start(last ? next : column, last ? next_depth : k + slice);
      add_products<1>(tiles.rows, mine, minimum(slice, sides.length - k), c);
    }
  }
};

// The row and the column, within their tiles, of a number of the warp's fragment.
__device__ __forceinline__ int row_of(int i) { return fragment_row() + i / 2 * 8; }
__device__ __forceinline__ int column_of(int i) { return 8 * warp() + 2 * fragment_column() + i % 2; }

CGC_HD inline int row_tiles(index_t count) { return int((count + tile_rows - 1) / tile_rows); }
CGC_HD inline int column_tiles(index_t batch) { return int((batch + tile_columns - 1) / tile_columns); }

// ---- Launching

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
