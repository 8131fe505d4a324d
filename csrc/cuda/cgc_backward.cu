// The three stages backward: contrast and resample in one kernel for the released objective, else one by one.
#include "cam.cuh"
#include "contrast_gradient.cuh"
#include "resample_gradient.cuh"

namespace cgc::CGC_ISA {

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
  gradient.to_positive = Acc(positive_gradient(call.resample.positive, resample, -double(totals[mine])));
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
  const PositiveGradient positive{mse_gradient(1, forward), -call.consistency / double(forward.batch),
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
