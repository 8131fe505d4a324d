// Stage resample, backward, by itself: gradients of rows, keys and positives -> gradients of the heatmaps. One block a
// sample.
#include "resample_gradient.cuh"
#include "resample_warp.cuh"

namespace cgc::CGC_ISA {

// What arrives at the unit maps: the gradients of rows and keys, of which one goes back through the products that made
// it: K of the released objective's keys, the transform of the paper's rows.
template <class Acc, bool warps, int entries, class Gradient, class Real>
__device__ __forceinline__ void load_unit_gradients(const ResampleBackward& call, const ResampleShared<Real>& shared,
                                                    Gradient& gradient) {
  const auto of = [&](const void* maps, int p) {
    return Real(simt::gld(static_cast<const Acc*>(maps) + gradient.sample * gradient.positions + p));
  };
  const bool paper = call.forward.objective == Objective::paper;
  gradient.each([&](int, int p) { shared.augmented[p] = of(paper ? call.grad_rows : call.grad_keys, p); });
  __syncthreads();
  Real through[entries] = {};
  if (warps && paper) {
    if constexpr (warps) {
      sweep(call.forward, shared, gradient.sample, false);
      gradient.each([&](int e, int p) { through[e] = swept(shared, map_adjoint, p, gradient.positions); });
    }
  } else {
    multiply_map<1>(shared, paper ? matrix_p : matrix_k, paper, shared.augmented, through);
  }
  gradient.each([&](int e, int p) {
    gradient.to_augmented[e] = paper ? of(call.grad_keys, p) : of(call.grad_rows, p) + through[e];
    gradient.to_seen[e] = paper ? through[e] : 0;
  });
}

template <class Acc, class State, class Real, int entries, bool warps>
__global__ void __launch_bounds__(block_threads, 1) resample_backward(const __grid_constant__ ResampleGradient phase) {
  const ResampleBackward& call = phase.call;
  const Resample& forward = call.forward;
  const ResampleShared<Real> shared(phase.shape);
  const index_t sample = blockIdx.x;
  simt::wait_for_predecessor();
  simt::release_successor();
  shared.load_matrices(phase.matrices, sample);
  __syncthreads();
  SampleGradient<Acc, State, Real, block_threads, entries> gradient(forward, phase.shape, shared.sums(),
                                                                    shared.scratch);
  gradient.load(sample);
  const bool mse = forward.objective == Objective::mse;
  const double contrast = call.grad_positives == nullptr ? 0 : simt::gld(call.grad_positives + sample);
  gradient.to_positive = Real(positive_gradient(phase.positive, forward, contrast));
  if (mse) {
    gradient.each([&](int e, int p) {
      shared.augmented[p] = normalised_map(gradient.augmented[e], gradient.aug_total, gradient.eps);
    });
    __syncthreads();
    multiply_map<1>(shared, matrix_k, false, shared.augmented, gradient.image);
  } else {
    load_unit_gradients<Acc, warps, entries>(call, shared, gradient);
  }
  gradient.to_normalised(mse);
  gradient.write(phase);
}

int launch_resample_backward(const ResampleBackward& call, const void* matrices, const PositiveGradient& positive,
                             bool mask, Stream& stream) {
  return with_resample_types(call.forward, [&](auto acc, auto state, auto real, auto entries, auto warps) {
    using Real = decltype(real);
    const ResampleGradient phase{call, MapShape(call.forward), matrices, positive, mask};
    return stream.start(&resample_backward<decltype(acc), decltype(state), Real, entries, warps>,
                        unsigned(call.forward.batch), resample_bytes<Real>(call.forward), phase);
  });
}

}  // namespace cgc::CGC_ISA
