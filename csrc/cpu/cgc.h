// The three stages fused: one pass over features and gradients each way, one parallel loop over samples and one over
// rows.
#pragma once

#include "cam.h"
#include "cam_backward.h"
#include "contrast.h"
#include "resample.h"

namespace cgc::CGC_ISA {

inline double mean_of(index_t count, const double* values, double (*term)(double)) {
  double total = 0;
  for (index_t i = 0; i < count; ++i) total += term(values[i]);
  return total / double(count);
}

template <class A, class G, class Acc>
double cgc(const Cgc& call, ParallelFor parallel_for) {
  const Resample& resample = call.resample;
  const Grid grid(resample);
  run(parallel_for, resample.batch, 1, [&](index_t begin, index_t end) {
    CamSample<A, G, Acc> original(call.views[0]), augmented(call.views[1]);
    ResampleSample<Acc> unit(resample, grid);
    for (index_t i = begin; i < end; ++i) {
      original(i);
      augmented(i);
      unit(i);
    }
  });
  double loss = 0;
  if (resample.objective == Objective::mse) {
    for (index_t i = 0; i < resample.batch; ++i) call.contrast.row_losses[i] = 0;
    loss = mean_of(resample.batch, resample.positives, unit_square) / double(resample.size_h * resample.size_w);
  } else {
    loss = contrast<Acc>(call.contrast, parallel_for);
  }
  if (call.consistency > 0) {
    loss += call.consistency * mean_of(resample.batch, resample.positives, [](double p) { return 1 - p; });
  }
  return loss;
}

// The gradients of rows, keys and positives, which stage contrast gives to stage resample.
template <class T>
class RowGradients {
 public:
  explicit RowGradients(const CgcBackward& call)
      : rows_(call.contrast.forward.batch * call.contrast.forward.length),
        keys_(call.contrast.forward.batch * call.contrast.forward.length),
        positives_(call.contrast.forward.batch),
        contrast_(call.contrast),
        resample_(call.resample) {
    contrast_.grad_rows = rows_.get(), contrast_.grad_keys = keys_.get(), contrast_.grad_positives = positives_.get();
    resample_.grad_rows = rows_.get(), resample_.grad_keys = keys_.get(), resample_.grad_positives = positives_.get();
  }

  const ContrastBackward& contrast() const { return contrast_; }
  const ResampleBackward& resample() const { return resample_; }

 private:
  Buffer<T> rows_, keys_;
  Buffer<double> positives_;
  ContrastBackward contrast_;
  ResampleBackward resample_;
};

template <class A, class G, class Acc>
void cgc_backward(const CgcBackward& call, ParallelFor parallel_for) {
  const Resample& resample = call.resample.forward;
  const Grid grid(resample);
  const RowGradients<Acc> upstream(call);
  double* grad_positives = upstream.contrast().grad_positives;
  const double grad_loss = value_of(call.contrast.grad_loss);
  if (resample.objective == Objective::mse) {
    const double gradient = mse_gradient(grad_loss, resample);
    for (index_t i = 0; i < resample.batch; ++i) grad_positives[i] = gradient;
  } else {
    contrast_backward<Acc>(upstream.contrast(), parallel_for);
  }
  const double share = call.consistency * grad_loss / double(resample.batch);
  for (index_t i = 0; i < resample.batch; ++i) grad_positives[i] -= share;
  run(parallel_for, resample.batch, 1, [&](index_t begin, index_t end) {
    ResampleBackwardSample<Acc> unit(upstream.resample(), grid);
    CamBackwardSample<A, G, Acc> original(call.views[0]), augmented(call.views[1]);
    Buffer<Acc> grads(2 * grid.count());
    for (index_t i = end; i-- > begin;) {  // what the forward read last may still lie in the cache
      unit(i, grads.get(), grads + grid.count());
      augmented(i, grads + grid.count());
      original(i, grads.get());
    }
  });
}

}  // namespace cgc::CGC_ISA
