// Stage resample, forward: heatmaps and a transform -> unit rows, keys and positives, as H x W algebra
// (docs/mathematics.md, section 2). One block a sample.
#include "resample.cuh"
#include "warp.cuh"

namespace cgc::CGC_ISA {
namespace {

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
    sweep(call, shared, sample, shared.middle, true);
    if (product == product_image) return;
    const int cells = shared.shape.positions;
    each_entry<entries>(thread() / map_products, step, cells,
                        [&](int e, int p) { out[e] = swept(shared.middle, product, p, cells); });
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

}  // namespace

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
