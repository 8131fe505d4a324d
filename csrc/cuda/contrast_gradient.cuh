// Stage contrast, backward, what its kernels share: sums of the tiles' weights with their columns. Similarities are
// computed again, and the weights follow from the row losses.
#pragma once

#include "contrast.cuh"

namespace cgc::CGC_ISA {

// Numbers of one sample, as its softmax needs them; what lies outside the batch has no weight.
template <class Acc>
struct Softmax {
  Acc positive = 0, loss = 0;
  bool inside = false;

  __device__ Softmax(const Contrast& from, int sample) : inside(sample < int(from.batch)) {
    if (inside) positive = Acc(simt::gld(from.positives + sample)), loss = Acc(simt::gld(from.row_losses + sample));
  }
  // exp of the logit less the log of the sum of exponentials
  __device__ __forceinline__ Acc probability(Acc similarity, Acc inverse_temperature) const {
    return std::exp((similarity - positive) * inverse_temperature - loss);
  }
};

// Gradients of 16 rows from `row`: grads[s] of elements 64 s to 64 s + 63, in fragments; and the sums of the weights of
// the rows' own softmax, a part for each lane. A pair of row and column stands in the softmax of the row, of the
// column, or of both, as in the released objective, where row and key of a sample are images of one map.
template <class Acc, int slices>
__device__ __forceinline__ void row_gradients(const ContrastBackward& call, const ContrastSides& sides, bool by_row,
                                              bool by_column, int row, const ContrastTiles<Acc>& tiles,
                                              Acc (&grads)[slices][4], Acc (&others)[2]) {
  const Contrast& from = call.forward;
  const Acc scale = Acc(value_of(call.grad_loss) / (from.temperature * double(sides.batch)));
  const Acc inverse_temperature = Acc(1 / from.temperature);
  const Softmax<Acc> mine[2] = {{from, row + row_of(0)}, {from, row + row_of(2)}};
  const Acc* elements = tiles.columns + fragment_column() * tile_stride + 8 * warp() + fragment_row();
  const int last = (ceil_div(sides.length, slice) - 1) * slice;
  SliceStream<Acc> stream{sides, tiles, row};
  stream.start(0, 0);
#pragma unroll 1
  for (int column = 0; column < sides.batch; column += tile_columns) {
    const Softmax<Acc> theirs[2] = {{from, column + column_of(0)}, {from, column + column_of(1)}};
    Acc c[4] = {};
    if (slices == 1) stream.add_similarities(column + tile_columns, 0, c);
    if (slices > 1) stream.add_similarities(column, last - slice, c);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool pair = mine[i / 2].inside && theirs[i % 2].inside && row + row_of(i) != column + column_of(i);
      Acc weight = 0;
      if (pair && by_row) weight = mine[i / 2].probability(c[i], inverse_temperature);
      others[i / 2] += weight;
      if (pair && by_column) weight += theirs[i % 2].probability(c[i], inverse_temperature);
      tiles.weights[row_of(i) * tile_stride + column_of(i)] = weight * scale;
    }
    __syncthreads();
#pragma unroll
    for (int s = slices - 1; s >= 0; --s) {
      if (s * slice >= sides.length) continue;
      if (s * slice < last) {  // else it is there since the similarities
        stream.finish(false);
        stream.start(s == 0 ? column + tile_columns : column, s == 0 ? 0 : (s - 1) * slice);
      }
      // The tile of weights with the slice of the columns, of which a warp takes eight elements.
      add_products<tile_stride>(tiles.weights, elements, tile_columns, grads[s]);
    }
  }
  others[0] *= scale, others[1] *= scale;
}

// visit(row of the tile, element, gradient) for what this lane holds of the gradients.
template <int slices, class Acc, class F>
__device__ __forceinline__ void each_gradient(const Acc (&grads)[slices][4], int length, F&& visit) {
  unrolled<slices>([&](int s) {
    unrolled<4>([&](int i) {
      if (s * slice + column_of(i) < length) visit(row_of(i), s * slice + column_of(i), grads[s][i]);
    });
  });
}

// Sums over the tile's columns of a part for each lane, [16], in shared memory after the next barrier but one.
template <class Acc>
__device__ __forceinline__ void sum_others(Acc (&others)[2], Acc* parts, Acc* to) {
  unrolled<2>([&](int half) {
    const Acc sum = warp_sum(others[half], 4);
    if (fragment_column() == 0) parts[warp() * tile_rows + fragment_row() + 8 * half] = sum;
  });
  __syncthreads();
  each(tile_rows, [&](int r) {
    Acc sum = 0;
    for (int w = 0; w < block_warps; ++w) sum += parts[w * tile_rows + r];
    to[r] = sum;
  });
}

}  // namespace cgc::CGC_ISA
