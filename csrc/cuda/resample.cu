// Stage resample, forward: heatmaps and a transform -> unit rows, keys and positives, as H x W algebra
// (docs/mathematics.md, section 2). One block a sample.
#include "resample.cuh"
#include "warp.cuh"

namespace cgc::CGC_ISA {
namespace {

struct ResampleForward {
  Resample call;
  Heatmaps from;
  unsigned* counter;  // set to zero; or null
  float eps;          // that of the call
};

// P o P^T, Q o Q, P^T a P and K a K at the thread's positions.
enum MapProduct { product_seen, product_gram, product_adjoint, product_image, map_products };  // as WarpMap begins

// All four of a warp, whose first three products are sums over the pixels of the view.
template <int entries, class Real>
__device__ __forceinline__ void warp_products(const Resample& call, const ResampleShared<Real>& shared, index_t sample,
                                              Real (&out)[map_products][entries]) {
  multiply_maps(shared, {{matrix_k, false, shared.augmented}}, out + product_image);
  __syncthreads();
  const int positions = shared.height * shared.width;
  sweep(call, shared, sample, shared.middle, true);
  each_entry<entries>(positions, [&](int e, int p) {
#pragma unroll
    for (int m = 0; m < warp_maps; ++m) out[m][e] = shared.middle[m * slots(positions) + p];
  });
}

// The unit maps of one sample, and its positive.
template <class Types, int entries, class Real>
__device__ __forceinline__ void write_unit_maps(const Resample& call, const ResampleShared<Real>& shared,
                                                index_t sample, const Real (&products)[map_products][entries]) {
  const int positions = shared.height * shared.width;
  Real numbers[3] = {};  // <a, T o>, |T o|^2, |a|^2
  each_entry<entries>(positions, [&](int e, int p) {
    numbers[0] += shared.augmented[p] * products[product_seen][e];
    numbers[1] += shared.original[p] * products[product_gram][e];
    numbers[2] += shared.augmented[p] * products[product_image][e];
  });
  block_sums(numbers, shared.scratch);
  const Real of_seen = inverse_root(numbers[1]), of_augmented = inverse_root(numbers[2]);
  if (thread() == 0) simt::gst(call.positives + sample, widened(numbers[0] * of_augmented * of_seen));
  const bool paper = call.objective == Objective::paper;
  auto* rows = static_cast<typename Types::Acc*>(call.rows) + sample * positions;
  auto* keys = static_cast<typename Types::Acc*>(call.keys) + sample * positions;
  auto* state = static_cast<typename Types::State*>(call.state) + sample * 3 * positions;
  each_entry<entries>(positions, [&](int e, int p) {
    using Acc = typename Types::Acc;
    using State = typename Types::State;
    const Real unit = shared.augmented[p] * of_augmented, image = products[product_image][e] * of_augmented,
               seen = products[product_seen][e] * of_seen;
    if (call.objective != Objective::mse) {
      simt::gst(rows + p, Acc(paper ? seen : unit));
      simt::gst(keys + p, Acc(paper ? unit : image));
    }
    simt::gst(state + p, State(paper ? image : seen));
    simt::gst(state + positions + p, State(products[product_gram][e] * of_seen));
    simt::gst(state + 2 * positions + p, State(products[product_adjoint][e] * of_augmented));
  });
}

template <class Types, int entries, bool warps>
__global__ void __launch_bounds__(block_threads, 1) resample_forward(const __grid_constant__ ResampleForward phase) {
  using Real = typename Types::Real;
  const Resample& call = phase.call;
  const int height = int(call.height), width = int(call.width), positions = height * width;
  const ResampleShared<Real> shared(call);
  const index_t sample = blockIdx.x;
  // The transform is an input, which no kernel before this one writes.
  crop_matrices(call, sample, shared);
  cell_sums(call, shared.sums);
  simt::wait_for_predecessor();
  simt::release_successor();
  if (sample == 0 && thread() == 0 && phase.counter != nullptr) simt::gst(phase.counter, 0u);
  each(2 * positions, [&](int i) {
    const int view = i >= positions, p = i - (view != 0 ? positions : 0);
    shared.middle[i] = Real(finished_heatmap<typename Types::Acc>(phase.from, view, sample, p));
  });
  __syncthreads();
  add_parts(shared);
  const Real eps = sizeof(Real) == 4 ? Real(phase.eps) : Real(call.eps),
             sum = heatmap_sum(shared.middle, shared.sums, height, width),
             aug_sum = heatmap_sum(shared.middle + positions, shared.sums, height, width);
  each(positions, [&](int p) {
    shared.original[p] = normalised_map(shared.middle[p], sum, eps);
    shared.augmented[p] = normalised_map(shared.middle[positions + p], aug_sum, eps);
  });
  __syncthreads();
  Real products[map_products][entries];
  if constexpr (warps) {
    warp_products(call, shared, sample, products);
  } else {
    multiply_maps(shared,
                  {{matrix_p, false, shared.original},
                   {matrix_q, false, shared.original},
                   {matrix_p, true, shared.augmented},
                   {matrix_k, false, shared.augmented}},
                  products);
  }
  write_unit_maps<Types>(call, shared, sample, products);
}

}  // namespace

int launch_resample(const Resample& call, const Heatmaps& heatmaps, unsigned* counter, Stream& stream) {
  return with_resample_types(call, [&](auto types, auto entries, auto warps) {
    using Types = decltype(types);
    using Real = typename Types::Real;
    const ResampleForward phase{call, heatmaps, counter, float(call.eps)};
    return stream.start(&resample_forward<Types, decltype(entries)::value, decltype(warps)::value>,
                        unsigned(call.batch), resample_bytes<Real>(call), phase);
  });
}

}  // namespace cgc::CGC_ISA
