// Stage resample: heatmaps and a transform -> unit rows and positives, as H x W algebra (docs/mathematics.md, section
// 2), one block a sample. Everything here is H * W-sized and in double. The matrices P, Q and K of a crop are summed
// over the pixels of each axis, a chunk of pixels at a time; a warp is one sweep over the pixels of the view.
#pragma once

#include "cam.cuh"
#include "crop.cuh"
#include "warp.cuh"

namespace cgc::CGC_ISA {

struct ResamplePhase {
  Resample call;
  int table;  // doubles of shared memory for rows of U and R U
};

struct ResampleBackwardPhase {
  ResampleBackward call;
  int table;
  double mse, consistency;  // gradients of a positive for a gradient 1 of the loss: of the mse objective, of the term
  Scalar grad_loss;         // of the fused loss; null where grad_positives is all there is
};

// ---- Both ways

// number(i) = sum over positions of term(position), for all threads after the next barrier.
template <class F>
__device__ __forceinline__ void sum_positions(const ResampleShared& shared, int i, F&& term) {
  double sum = 0;
  each(shared.y.cells * shared.x.cells, [&](int p) { sum += term(p); });
  sum = block_sum(sum, shared.scratch);
  if (thread() == 0) shared.number(i) = sum;
}

// m = M / (s + eps) + eps of both views, where s is the sum of the upsampled map.
template <class Acc>
__device__ __forceinline__ void normalise(const Resample& call, const ResampleShared& shared, int sample) {
  const int width = shared.x.cells, count = shared.y.cells * width;
#pragma unroll 1
  for (int view = 0; view < 2; ++view) {
    const Acc* heatmap =
        static_cast<const Acc*>(view == 0 ? call.heatmaps : call.aug_heatmaps) + index_t(sample) * count;
    const Span m = view == 0 ? shared.original : shared.augmented;
    sum_positions(shared, sum_original + view, [&](int p) {
      m[p] = double(simt::gld(heatmap + p));
      return shared.y.sums[p / width] * shared.x.sums[p % width] * m[p];
    });
    __syncthreads();
    const double sum = shared.number(sum_original + view);
    each(count, [&](int p) { m[p] = normalised(m[p], sum, call.eps); });
  }
  __syncthreads();
}

// Writes the three maps that the backward needs and leaves in shared.image the one that a row or key is made of: T o of
// the paper's objective, otherwise K a K. One loop over the four maps, which keeps the code small.
__device__ __forceinline__ void map_products(const Resample& call, const ResampleShared& shared, int sample) {
  const int count = shared.y.cells * shared.x.cells;
  const bool crops = call.crops != nullptr;
  const int kept = call.objective == Objective::paper ? 0 : 3;
  if (!crops) sweep(call, shared, sample, true);
#pragma unroll 1
  for (int map = 0; map < 4; ++map) {  // P o P^T, Q o Q, P^T a P, K a K
    const int matrix = map == 3 ? 2 : map & 1;
    Span result = shared.out;
    if (crops || map == 3) {
      sandwich(shared, shared.y.p + matrix * shared.y.cells * shared.y.cells,
               shared.x.p + matrix * shared.x.cells * shared.x.cells, map == 2,
               map < 2 ? shared.original : shared.augmented, shared.out);
    } else if (map < 2) {
      result = map == 0 ? shared.image : shared.work;
    }
    const Span other = map == 1 ? shared.original : shared.augmented;
    sum_positions(shared,
                  map == 0   ? cross
                  : map == 1 ? seen_square
                  : map == 2 ? aug_inner
                             : aug_square,
                  [&](int p) {
                    const double value = result[p];
                    if (map < 3) simt::gst(call.state + (index_t(sample) * 3 + map) * count + p, value);
                    if (map == kept) shared.image[p] = value;
                    return other[p] * value;
                  });
  }
  __syncthreads();
}

template <class Acc>
__device__ __forceinline__ void write_rows(const Resample& call, const ResampleShared& shared, int sample) {
  const int count = shared.y.cells * shared.x.cells;
  const double aug_scale = inverse_root(shared.number(aug_square));
  const double seen_scale = inverse_root(shared.number(seen_square));
  if (thread() == 0) simt::gst(call.positives + sample, shared.number(cross) * aug_scale * seen_scale);
  if (call.objective == Objective::mse) return;
  const bool paper = call.objective == Objective::paper;
  each(count, [&](int p) {
    const double augmented = shared.augmented[p] * aug_scale;
    const double image = shared.image[p] * (paper ? seen_scale : aug_scale);
    simt::gst(static_cast<Acc*>(call.rows) + index_t(sample) * count + p, Acc(paper ? image : augmented));
    simt::gst(static_cast<Acc*>(call.keys) + index_t(sample) * count + p, Acc(paper ? augmented : image));
  });
}

// Heatmaps that still lie in sums of their splits are finished first.
template <class Acc>
__device__ __forceinline__ void resample_phase(const ResamplePhase& phase, const CamPhase& cam) {
  const Resample& call = phase.call;
#pragma unroll 1
  for (int sample = int(blockIdx.x); sample < int(call.batch); sample += int(gridDim.x)) {
    if (cam.plan.splits > 1) {
#pragma unroll 1
      for (int view = 0; view < 2; ++view) finish_heatmap<Acc>(cam, view, sample);
    }
    prepare(call, resample_shared(call, phase.table), sample, call.crops != nullptr);
    normalise<Acc>(call, resample_shared(call, phase.table), sample);
    map_products(call, resample_shared(call, phase.table), sample);
    write_rows<Acc>(call, resample_shared(call, phase.table), sample);
    __syncthreads();
  }
}

// ---- Backward

// Gradient of one positive: what the contrast or the mse objective sends, and the consistency term.
__device__ __forceinline__ double positive_gradient(const ResampleBackwardPhase& phase, int sample) {
  const ResampleBackward& call = phase.call;
  const Scalar scalar{fresh(phase.grad_loss.data), phase.grad_loss.float64};
  if (scalar.data == nullptr) return simt::gld(call.grad_positives + sample);
  const double grad_loss = value_of(scalar);
  const double grad = call.forward.objective == Objective::mse
                          ? mse_gradient(simt::gld(call.forward.positives + sample), phase.mse * grad_loss)
                          : simt::gld(call.grad_positives + sample);
  return grad + phase.consistency * grad_loss;
}

// The inner products of the backward, and the factors of unit_gradient that follow from them. Leaves the Gram image of
// the seen map in shared.original.
template <class Acc>
__device__ __forceinline__ void inner_products(const ResampleBackwardPhase& phase, const ResampleShared& shared,
                                               int sample, const double* state, const Acc* grad_rows,
                                               const Acc* grad_keys) {
  const bool contrasts = phase.call.forward.objective != Objective::mse;
  const bool paper = phase.call.forward.objective == Objective::paper;
  const int count = shared.y.cells * shared.x.cells;
#pragma unroll 1
  for (int i = cross; i <= seen_inner; ++i) {
    sum_positions(shared, i, [&](int p) {
      const double row = contrasts && i >= aug_inner ? double(simt::gld(grad_rows + p)) : 0;
      if (i == seen_square) {
        const double gram = simt::gld(state + count + p), product = shared.original[p] * gram;
        shared.original[p] = gram;  // the map itself is not needed any more
        return product;
      }
      if (i == seen_inner) return paper ? row * simt::gld(state + p) : 0;
      if (i == cross) return shared.augmented[p] * simt::gld(state + p);
      if (i == aug_square) return shared.augmented[p] * shared.image[p];
      const double key = contrasts ? double(simt::gld(grad_keys + p)) : 0;
      return paper ? key * shared.augmented[p] : row * shared.augmented[p] + key * shared.image[p];
    });
  }
  __syncthreads();
  if (thread() == 0) {
    const double of_seen = inverse_root(shared.number(seen_square)), of_aug = inverse_root(shared.number(aug_square));
    const double grad = positive_gradient(phase, sample), cosine = grad * shared.number(cross) * of_aug * of_seen;
    shared.number(factors + seen_scale) = of_seen;
    shared.number(factors + aug_scale) = of_aug;
    shared.number(factors + seen_share) = grad * of_aug;
    shared.number(factors + aug_share) = grad * of_seen;
    shared.number(factors + seen_radial) = (cosine + of_seen * shared.number(seen_inner)) * of_seen;
    shared.number(factors + aug_radial) = (cosine + of_aug * shared.number(aug_inner)) * of_aug;
  }
  __syncthreads();
}

// Gradients of the normalised maps, left in shared.original and shared.augmented.
template <class Acc>
__device__ __forceinline__ void unit_gradients(const ResampleBackwardPhase& phase, const ResampleShared& shared,
                                               int sample) {
  const ResampleBackward& call = phase.call;
  const Resample& forward = call.forward;
  const int count = shared.y.cells * shared.x.cells;
  const double* state = forward.state + index_t(sample) * 3 * count;
  const bool contrasts = forward.objective != Objective::mse, paper = forward.objective == Objective::paper;
  const Acc* grad_rows = static_cast<const Acc*>(call.grad_rows) + (contrasts ? index_t(sample) * count : 0);
  const Acc* grad_keys = static_cast<const Acc*>(call.grad_keys) + (contrasts ? index_t(sample) * count : 0);
  sandwich(shared, shared.y.k, shared.x.k, false, shared.augmented, shared.image);
  inner_products(phase, shared, sample, state, grad_rows, grad_keys);
  // What arrived at the image of a map goes back through it.
  each(count, [&](int p) { shared.out[p] = contrasts ? double(simt::gld((paper ? grad_rows : grad_keys) + p)) : 0; });
  __syncthreads();
  const bool sweeps = paper && forward.inverses != nullptr;
  if (sweeps) {
    adjoint_sweep(forward, shared, sample);
  } else {
    sandwich(shared, paper ? shared.y.p : shared.y.k, paper ? shared.x.p : shared.x.k, paper, shared.out, shared.out);
  }
  each(count, [&](int p) {
    const double arrived = contrasts ? double(simt::gld((paper ? grad_keys : grad_rows) + p)) : 0;
    const double through = shared.out[p];
    const double seen = simt::gld(state + p);
    const double gram = sweeps ? simt::gld(state + count + p) : shared.original[p];
    const auto factor = [&](int i) { return shared.number(factors + i); };
    shared.original[p] = unit_gradient(factor(seen_scale), paper ? through : 0, factor(seen_share),
                                       simt::gld(state + 2 * count + p), factor(seen_radial), gram);
    shared.augmented[p] = unit_gradient(factor(aug_scale), paper ? arrived : arrived + through, factor(aug_share), seen,
                                        factor(aug_radial), shared.image[p]);
  });
  __syncthreads();
}

// Gradients of the normalised maps back to the heatmaps, damped where they are near-dead.
template <class Acc>
__device__ __forceinline__ void normalise_backward(const ResampleBackward& call, const ResampleShared& shared,
                                                   int sample) {
  const Resample& forward = call.forward;
  const int width = shared.x.cells, count = shared.y.cells * width;
#pragma unroll 1
  for (int view = 0; view < 2; ++view) {
    const index_t first = index_t(sample) * count;
    const Acc* heatmap = static_cast<const Acc*>(view == 0 ? forward.heatmaps : forward.aug_heatmaps) + first;
    Acc* to = static_cast<Acc*>(view == 0 ? call.grad_heatmaps : call.grad_aug_heatmaps) + first;
    const Span grad = view == 0 ? shared.original : shared.augmented;
    sum_positions(shared, cross, [&](int p) { return grad[p] * double(simt::gld(heatmap + p)); });
    __syncthreads();
    const double sum = shared.number(sum_original + view), inner = shared.number(cross) / (sum + forward.eps);
    const double divisor = normalisation_divisor(sum, forward.eps);
    each(count, [&](int p) {
      const double y = shared.y.sums[p / width], x = shared.x.sums[p % width];
      simt::gst(to + p, Acc(normalisation_gradient(grad[p], inner, y, x, divisor)));
    });
    __syncthreads();
  }
}

template <class Acc>
__device__ __forceinline__ void resample_backward_phase(const ResampleBackwardPhase& phase) {
  const Resample& forward = phase.call.forward;
#pragma unroll 1
  for (int sample = int(blockIdx.x); sample < int(forward.batch); sample += int(gridDim.x)) {
    prepare(forward, resample_shared(forward, phase.table), sample,
            forward.crops != nullptr && forward.objective == Objective::paper);
    normalise<Acc>(forward, resample_shared(forward, phase.table), sample);
    unit_gradients<Acc>(phase, resample_shared(forward, phase.table), sample);
    normalise_backward<Acc>(phase.call, resample_shared(forward, phase.table), sample);
  }
}

}  // namespace cgc::CGC_ISA
