// Gradients of one sample's unit maps back to its heatmaps, by a warp or by a block (docs/mathematics.md, section 2).
// It starts from the unit maps that the forward has kept: nothing is resampled again.
#pragma once

#include "resample.cuh"

namespace cgc::CGC_ISA {

struct ResampleGradient {
  ResampleBackward call;
  MapShape shape;
  const void* matrices;  // [B, matrices_size]; null in the kernel that needs none
  PositiveGradient positive;
  bool mask;  // whether the gradients go on through the ReLU of the heatmaps
};

// Gradient of one positive: what the contrast or the mse objective sends, and the consistency term.
__device__ __forceinline__ double positive_gradient(const PositiveGradient& from, const Resample& call,
                                                    double contrast) {
  if (from.grad_loss.data == nullptr) return contrast;
  const double grad_loss = value_of(from.grad_loss);
  if (call.objective == Objective::mse) contrast = from.mse * grad_loss;
  return contrast + from.consistency * grad_loss;
}

// One sample, at the positions that are dealt out to this one of `threads`: a warp or a block.
template <class Acc, class State, class Real, int threads, int entries>
struct SampleGradient {
  const Resample& call;
  const MapShape& shape;
  const Real* sums;  // shared, U^T 1 of both axes
  Real* scratch;     // shared, of a block's sums
  index_t sample = 0;
  int positions = shape.positions;
  Real eps, total, aug_total;                                           // totals: s of the views, by sum_unit
  Real shares[entries];                                                 // of cell_share
  Real original[entries], augmented[entries];                           // heatmaps
  Real image[entries], seen[entries], gram[entries], adjoint[entries];  // unit maps
  Real to_augmented[entries], to_seen[entries];                         // what arrives at the unit maps of both views
  Real to_positive = 0;

  // visit(entry, position)
  template <class F>
  __device__ void each(F&& visit) const {
    each_entry<entries>(thread() % threads, threads, positions, visit);
  }

  // Over the threads, for each.
  template <int count>
  __device__ void sum(Real (&values)[count]) const {
    if constexpr (threads == block_threads) {
      __syncthreads();  // an earlier sum may still be read
      block_sums(values, scratch);
    } else {
      for (Real& value : values) value = warp_sum(value);
    }
  }

  __device__ SampleGradient(const Resample& call, const MapShape& shape, const Real* sums, Real* scratch)
      : call(call), shape(shape), sums(sums), scratch(scratch), eps(Real(call.eps)) {}

  // What the forward has left of a sample.
  __device__ void load(index_t of_batch) {
    sample = of_batch;
    const bool paper = call.objective == Objective::paper, mse = call.objective == Objective::mse;
    const auto* state = static_cast<const State*>(call.state) + sample * 3 * positions;
    const auto of = [&](const void* maps, int p) {
      return Real(simt::gld(static_cast<const Acc*>(maps) + sample * positions + p));
    };
    Real totals[2] = {};
    each([&](int e, int p) {
      shares[e] = cell_share(sums, shape, p);
      original[e] = of(call.heatmaps, p), augmented[e] = of(call.aug_heatmaps, p);
      const Real first = Real(simt::gld(state + p));
      image[e] = paper ? first : mse ? Real(0) : of(call.keys, p);
      seen[e] = paper ? of(call.rows, p) : first;
      to_augmented[e] = to_seen[e] = 0;
      gram[e] = Real(simt::gld(state + positions + p)), adjoint[e] = Real(simt::gld(state + 2 * positions + p));
      totals[0] += shares[e] * (original[e] * sum_unit<Real>);
      totals[1] += shares[e] * (augmented[e] * sum_unit<Real>);
    });
    sum(totals);
    total = totals[0], aug_total = totals[1];
  }

  // From the unit maps to the normalised ones, in the place of what arrives. raw_image: the Gram image K a K, not yet
  // divided by |a|, where the forward has not kept it.
  __device__ void to_normalised(bool raw_image) {
    Real numbers[4] = {};  // <a, image>, <o, gram>, and what arrives along a and o
    each([&](int e, int) {
      const Real a = normalised_map(augmented[e], aug_total, eps), o = normalised_map(original[e], total, eps);
      numbers[0] += a * image[e];
      numbers[1] += o * gram[e];
      numbers[2] += to_augmented[e] * a;
      numbers[3] += to_seen[e] * o;
    });
    sum(numbers);
    const auto inverse = [](Real length) { return length == 0 ? Real(0) : 1 / length; };  // a warp may see nothing
    const Real of_augmented = raw_image ? inverse_root(numbers[0]) : inverse(numbers[0]), of_seen = inverse(numbers[1]);
    const Real scale = view_gradient_scale(of_seen, eps);
    const Real cosine = to_positive * Real(simt::gld(call.positives + sample));
    each([&](int e, int) {
      to_augmented[e] = unit_gradient(of_augmented, to_augmented[e], to_positive, seen[e],
                                      cosine + numbers[2] * of_augmented, image[e] * (raw_image ? of_augmented : 1));
      to_seen[e] = unit_gradient(scale, to_seen[e], to_positive, adjoint[e], cosine + numbers[3] * of_seen, gram[e]);
    });
  }

  // And on to the heatmaps, written: [P] each.
  __device__ void write(const ResampleGradient& phase) {
    Real inner[2] = {};
    each([&](int e, int) {
      inner[0] += to_seen[e] * (original[e] * sum_unit<Real>);
      inner[1] += to_augmented[e] * (augmented[e] * sum_unit<Real>);
    });
    sum(inner);
    const auto put = [&](void* to, int e, int p, Real heatmap, Real grad, Real along, Real sum) {
      const Real divisor = normalisation_divisor(sum / sum_unit<Real>, eps);
      const Real value = normalisation_gradient(grad, share_of_sum(along, sum, eps), shares[e], divisor);
      simt::gst(static_cast<Acc*>(to) + sample * positions + p,
                Acc(phase.mask ? relu_gradient(heatmap, value) : value));
    };
    each([&](int e, int p) {
      put(phase.call.grad_heatmaps, e, p, original[e], to_seen[e], inner[0], total);
      put(phase.call.grad_aug_heatmaps, e, p, augmented[e], to_augmented[e], inner[1], aug_total);
    });
  }
};

}  // namespace cgc::CGC_ISA
