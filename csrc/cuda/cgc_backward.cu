// Stage contrast, backward: sums of the tiles' weights with their columns. Similarities are computed again, and the
// weights follow from the row losses. By itself; and in one kernel with resample backward, of the released objective.
#include "cam.cuh"
#include "contrast.cuh"
#include "resample_gradient.cuh"

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
#pragma unroll 1
  for (int column = 0; column < sides.batch; column += tile_columns) {
    const Softmax<Acc> theirs[2] = {{from, column + column_of(0)}, {from, column + column_of(1)}};
    Acc c[4] = {};
    similarities<Acc, slices == 1>(sides, row, column, column == 0, tiles, c);
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
      if ((s + 1) * slice < sides.length) {  // else it is there since the similarities
        load_columns(sides, column, s * slice, tiles.columns);
        __syncthreads();
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

// Half of the blocks take the gradients of the rows, half those of the keys, whose softmaxes are the columns'.
template <class Acc, int slices>
__global__ void __launch_bounds__(block_threads, 1) contrast_backward(const __grid_constant__ ContrastBackward call) {
  SIMT_DYN_SHARED(Acc, memory);
  const ContrastTiles<Acc> tiles(memory);
  const Contrast& forward = call.forward;
  const int batch = int(forward.batch), length = int(forward.length);
  const bool keys = blockIdx.x >= gridDim.x / 2;
  const int mine = int(keys ? blockIdx.x - gridDim.x / 2 : blockIdx.x) * tile_rows, row = int(forward.first) + mine;
  const int rows = minimum(tile_rows, int(forward.count) - mine);
  const ContrastSides sides{keys ? forward.keys : forward.rows, keys ? forward.rows : forward.keys, batch, length};
  simt::release_successor();
  Acc grads[slices][4] = {}, others[2] = {};
  row_gradients<Acc, slices>(call, sides, !keys, keys, row, tiles, grads, others);
  Acc* to = static_cast<Acc*>(keys ? call.grad_keys : call.grad_rows);
  each_gradient(grads, length, [&](int r, int k, Acc grad) {
    if (r < rows) simt::gst(to + index_t(mine + r) * length + k, grad);
  });
  if (!keys) {
    __syncthreads();
    Acc* sums = tiles.weights;
    sum_others(others, tiles.rows, sums);
    each(rows, [&](int r) { simt::gst(call.grad_positives + mine + r, -double(sums[r])); });
  }
  simt::wait_for_predecessor();  // which has written nothing of what is read here
}

int launch_contrast_backward(const ContrastBackward& call, Stream& stream) {
  return with_contrast_types(call.forward, [&](auto acc, auto slices) {
    using Acc = decltype(acc);
    return stream.start(&contrast_backward<Acc, decltype(slices)::value>, 2 * unsigned(row_tiles(call.forward.count)),
                        ContrastTiles<Acc>::elements * index_t(sizeof(Acc)), call);
  });
}

// ---- With resample backward

constexpr index_t most_fused_positions = 256;

struct FusedBackward {
  ContrastBackward contrast;  // of which the gradients are not written
  ResampleGradient resample;
};

// U^T 1 of both axes, [H] and then [W], of the pixels that each cell reaches.
template <class Real>
__device__ __forceinline__ void cell_sums(const Resample& call, const MapShape& shape, Real* sums) {
  constexpr int lanes = 16;  // that share a cell
  const int cells = shape.height + shape.width;
  for (int base = 0; base < cells; base += block_threads / lanes) {
    const int i = minimum(base + thread() / lanes, cells - 1), cell = i < shape.height ? i : i - shape.height;
    const CropAxis axis{int(i < shape.height ? call.size_h : call.size_w),
                        i < shape.height ? shape.height : shape.width, 0, 0, false};
    const Real unit = Real(1) / Real(2 * axis.size);
    const int first = maximum((2 * cell - 1) * axis.size / (2 * axis.cells) - 1, 0),
              last = minimum((2 * cell + 3) * axis.size / (2 * axis.cells) + 1, axis.size);
    Real sum = 0;
#pragma unroll 4
    for (int pixel = first + thread() % lanes; pixel < last; pixel += lanes) {
      sum += hat(upsampled_position(axis, pixel), cell, axis.size, unit);
    }
    sum = warp_sum(sum, lanes);
    if (thread() % lanes == 0 && base + thread() / lanes == i) sums[i] = sum;
  }
}

// A block takes the gradients of 16 samples' unit maps, and half of these on to their heatmaps, a warp to each: the
// other block that takes them has a multiprocessor of its own. Row and key of a sample are u and K u for its unit map
// u, and K is symmetric: the gradient of u is the sum over all pairs of both softmaxes' weights times the other's key.
template <class Acc, int slices>
__global__ void __launch_bounds__(block_threads, 1) cgc_backward(const __grid_constant__ FusedBackward call) {
  SIMT_DYN_SHARED(Acc, memory);
  const ContrastTiles<Acc> tiles(memory);
  const Contrast& contrast = call.contrast.forward;
  const Resample& resample = call.resample.call.forward;
  const MapShape& shape = call.resample.shape;
  const int batch = int(contrast.batch), length = shape.positions, row = int(blockIdx.x / 2) * tile_rows;
  const int mine = int(blockIdx.x % 2) * block_warps + warp(), sample = minimum(row + mine, batch - 1);
  Acc* arrived = memory + ContrastTiles<Acc>::elements;  // [16, P]
  Acc *sums = arrived + tile_rows * length, *totals = sums + shape.height + shape.width;
  cell_sums(resample, shape, sums);
  __syncthreads();
  constexpr int entries = slices * slice / warp_threads;
  SampleGradient<Acc, Acc, Acc, warp_threads, entries> gradient(resample, shape, sums, nullptr);
  if (slices == 1) gradient.load(sample);  // on its way; more would take too many registers
  simt::wait_for_predecessor();
  simt::release_successor();
  const ContrastSides sides{contrast.rows, contrast.keys, batch, length};
  {
    Acc grads[slices][4] = {}, others[2] = {};
    row_gradients<Acc, slices>(call.contrast, sides, true, true, row, tiles, grads, others);
    each_gradient(grads, length, [&](int r, int k, Acc grad) { arrived[r * length + k] = grad; });
    __syncthreads();
    sum_others(others, tiles.rows, totals);
  }
  __syncthreads();
  if (slices > 1) gradient.load(sample);
  gradient.each([&](int e, int p) { gradient.to_augmented[e] = arrived[mine * length + p]; });
  gradient.to_positive = Acc(positive_gradient(call.resample.positive, resample, sample, -double(totals[mine])));
  gradient.to_normalised(false);
  if (row + mine < batch) gradient.write(call.resample);
}

}  // namespace cgc::CGC_ISA

// The gradients of the heatmaps, and, where a kernel hands them on, of rows, keys and positives lie in the workspace.
int cgc::launch(const CgcBackward& given, Stream& stream) {
  using namespace CGC_ISA;
  CgcBackward call = given;
  const Resample& forward = call.resample.forward;
  const index_t positions = forward.height * forward.width;
  const index_t bytes = forward.batch * positions * (forward.float64 ? 8 : 4);
  call.views[0].grad_heatmaps = call.resample.grad_heatmaps = stream.take(bytes);
  call.views[1].grad_heatmaps = call.resample.grad_aug_heatmaps = stream.take(bytes);
  call.views[0].forward.heatmaps = call.views[1].forward.heatmaps = nullptr;  // their ReLU is passed by stage resample
  const PositiveGradient positive{mse_share(1, forward), -call.consistency / double(forward.batch),
                                  call.contrast.grad_loss};
  if (forward.objective == Objective::released && positions <= most_fused_positions) {
    const FusedBackward phase{call.contrast, {call.resample, MapShape(forward), nullptr, positive, true}};
    with_type(forward.float64, [&](auto acc) {
      using Acc = decltype(acc);
      const index_t elements =
          ContrastTiles<Acc>::elements + tile_rows * (positions + 1) + forward.height + forward.width;
      return stream.start(positions <= slice ? &cgc_backward<Acc, 1> : &cgc_backward<Acc, 4>,
                          2 * unsigned(row_tiles(forward.batch)), elements * index_t(sizeof(Acc)), phase);
    });
  } else {
    if (forward.objective != Objective::mse) {
      call.resample.grad_rows = call.contrast.grad_rows = stream.take(bytes);
      call.resample.grad_keys = call.contrast.grad_keys = stream.take(bytes);
      call.contrast.grad_positives = static_cast<double*>(stream.take(forward.batch * 8));
      call.resample.grad_positives = call.contrast.grad_positives;
    }
    const void* matrices = launch_crop_matrices(forward, stream);
    if (forward.objective != Objective::mse) launch_contrast_backward(call.contrast, stream);
    launch_resample_backward(call.resample, matrices, positive, true, stream);
  }
  return launch_cam_backward(call.views, 2, stream);
}
