// Stage resample: heatmaps and a transform -> unit rows and positives, as H x W algebra (docs/mathematics.md, section
// 2). Everything here is H * W-sized and done in double: 1 - positive cancels, and rows are rounded once, when stored.
#pragma once

#include "../common/dispatch.h"
#include "../common/gradients.h"
#include "executor.h"
#include "resample_geometry.h"

namespace cgc::CGC_ISA {

// m = M / (s + eps) + eps; returns s, the sum of the upsampled map.
template <class T>
double normalise(const Grid& grid, const T* heatmap, double eps, double* m) {
  const double* sums = grid.sums;
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (index_t p = 0; p < grid.count(); ++p) sum += sums[p] * double(heatmap[p]);
#pragma omp simd
  for (index_t p = 0; p < grid.count(); ++p) m[p] = normalised(double(heatmap[p]), sum, eps);
  return sum;
}

// Gradient of m back to the heatmap, damped where it is near-dead.
template <class T>
void normalise_backward(const Grid& grid, const T* heatmap, double sum, double eps, const double* grad_m,
                        T* grad_heatmap) {
  const double* sums = grid.sums;
  double inner = 0;
#pragma omp simd reduction(+ : inner)
  for (index_t p = 0; p < grid.count(); ++p) inner += grad_m[p] * double(heatmap[p]);
  inner /= sum + eps;
  const double divisor = normalisation_divisor(sum, eps);
#pragma omp simd
  for (index_t p = 0; p < grid.count(); ++p) {
    grad_heatmap[p] = T(normalisation_gradient(grad_m[p], inner, sums[p], divisor));
  }
}

// Where a sample's state lies, in the type that the call has for it.
template <class T>
T* state_of(const Resample& call, index_t sample) {
  return static_cast<T*>(call.state) + sample * 3 * call.height * call.width;
}

template <class T>
class ResampleSample {
 public:
  ResampleSample(const Resample& call, const Grid& grid)
      : call_(call),
        grid_(grid),
        operator_(call, grid),
        memory_(7 * grid.room()),
        original_(memory_.take(grid.room())),
        augmented_(memory_.take(grid.room())),
        image_(memory_.take(grid.room())),
        state_(memory_.take(3 * grid.room())),
        work_(memory_.take(grid.room())) {}

  void operator()(index_t sample) {
    const index_t n = grid_.count();
    normalise(grid_, static_cast<const T*>(call_.heatmaps) + sample * n, call_.eps, original_);
    normalise(grid_, static_cast<const T*>(call_.aug_heatmaps) + sample * n, call_.eps, augmented_);
    double* seen = state_;
    double* seen_gram = seen + n;
    double* augmented_seen = seen_gram + n;
    operator_.prepare(sample);
    operator_.apply(original_, seen, seen_gram);  // in their order: the next overwrites what is written behind one
    operator_.adjoint(augmented_, augmented_seen);
    with_type(wide_state(call_), [&](auto type) { store_state<decltype(type)>(sample); });
    sandwich(grid_, grid_.y.gram, augmented_, grid_.x.gram, image_, work_);
    const double aug_scale = inverse_root(dot(augmented_, image_, n));
    const double seen_scale = inverse_root(dot(original_, seen_gram, n));
    call_.positives[sample] = dot(augmented_, seen, n) * aug_scale * seen_scale;
    if (!contrasts(call_.objective)) return;
    const bool released = call_.objective == Objective::released;
    T* row = static_cast<T*>(call_.rows) + sample * n;
    T* key = static_cast<T*>(call_.keys) + sample * n;
    for (index_t p = 0; p < n; ++p) {
      row[p] = T(released ? augmented_[p] * aug_scale : seen[p] * seen_scale);
      key[p] = T((released ? image_[p] : augmented_[p]) * aug_scale);
    }
  }

 private:
  template <class S>
  void store_state(index_t sample) const {
    S* to = state_of<S>(call_, sample);
    for (index_t p = 0; p < 3 * grid_.count(); ++p) to[p] = S(state_[p]);
  }

  const Resample& call_;
  const Grid& grid_;
  Operator operator_;
  Parts<double> memory_;
  double *const original_, *const augmented_, *const image_, *const state_, *const work_;
};

template <class T>
class ResampleBackwardSample {
 public:
  ResampleBackwardSample(const ResampleBackward& call, const Grid& grid)
      : call_(call),
        forward_(call.forward),
        grid_(grid),
        operator_(call.forward, grid),
        memory_(10 * grid.room()),
        original_(memory_.take(grid.room())),
        augmented_(memory_.take(grid.room())),
        image_(memory_.take(grid.room())),
        grad_rows_(memory_.take(grid.room())),
        grad_keys_(memory_.take(grid.room())),
        mapped_(memory_.take(grid.room())),
        state_(memory_.take(3 * grid.room())),
        work_(memory_.take(grid.room())) {}

  // Writes the gradients of both heatmaps of one sample, [P] each.
  void operator()(index_t sample, T* grad_heatmap, T* grad_aug_heatmap) {
    const index_t n = grid_.count();
    const T* heatmap = static_cast<const T*>(forward_.heatmaps) + sample * n;
    const T* aug_heatmap = static_cast<const T*>(forward_.aug_heatmaps) + sample * n;
    const double sum = normalise(grid_, heatmap, forward_.eps, original_);
    const double aug_sum = normalise(grid_, aug_heatmap, forward_.eps, augmented_);
    load_upstream(sample);
    with_type(wide_state(forward_), [&](auto type) { load_state<decltype(type)>(sample); });
    unit_gradients(sample);
    normalise_backward(grid_, heatmap, sum, forward_.eps, original_, grad_heatmap);
    normalise_backward(grid_, aug_heatmap, aug_sum, forward_.eps, augmented_, grad_aug_heatmap);
  }

 private:
  void load_upstream(index_t sample) {
    const index_t n = grid_.count();
    const bool contrasted = contrasts(forward_.objective);
    const T* rows = static_cast<const T*>(call_.grad_rows) + (contrasted ? sample * n : 0);
    const T* keys = static_cast<const T*>(call_.grad_keys) + (contrasted ? sample * n : 0);
    for (index_t p = 0; p < n; ++p) {
      grad_rows_[p] = contrasted ? double(rows[p]) : 0.0;
      grad_keys_[p] = contrasted ? double(keys[p]) : 0.0;
    }
  }

  template <class S>
  void load_state(index_t sample) const {
    const S* from = state_of<S>(forward_, sample);
    for (index_t p = 0; p < 3 * grid_.count(); ++p) state_[p] = double(from[p]);
  }

  // Gradients of the normalised maps, left in original_ and augmented_.
  void unit_gradients(index_t sample) {
    const index_t n = grid_.count();
    const double* seen = state_;
    const double* seen_gram = seen + n;
    const double* augmented_seen = seen_gram + n;
    sandwich(grid_, grid_.y.gram, augmented_, grid_.x.gram, image_, work_);
    const double aug_scale = inverse_root(dot(augmented_, image_, n));
    const double seen_scale = inverse_root(dot(original_, seen_gram, n));
    const double grad = call_.grad_positives[sample];
    const double cosine = grad * dot(augmented_, seen, n) * aug_scale * seen_scale;
    double seen_radial = cosine, aug_radial = cosine;
    const double* aug_direction = grad_rows_;
    for (index_t p = 0; p < n; ++p) mapped_[p] = 0;
    if (forward_.objective == Objective::released) {
      aug_radial += aug_scale * (dot(grad_rows_, augmented_, n) + dot(grad_keys_, image_, n));
      sandwich(grid_, grid_.y.gram, grad_keys_, grid_.x.gram, mapped_, work_);
      for (index_t p = 0; p < n; ++p) grad_rows_[p] += mapped_[p], mapped_[p] = 0;
    } else if (forward_.objective == Objective::paper) {
      aug_direction = grad_keys_;
      aug_radial += aug_scale * dot(grad_keys_, augmented_, n);
      seen_radial += seen_scale * dot(grad_rows_, seen, n);
      operator_.prepare(sample);
      operator_.adjoint(grad_rows_, mapped_);
    }
    const double view_scale = view_gradient_scale(seen_scale, forward_.eps);
    for (index_t p = 0; p < n; ++p) {
      original_[p] = unit_gradient(view_scale, mapped_[p], grad * aug_scale, augmented_seen[p],
                                   seen_radial * seen_scale, seen_gram[p]);
      augmented_[p] =
          unit_gradient(aug_scale, aug_direction[p], grad * seen_scale, seen[p], aug_radial * aug_scale, image_[p]);
    }
  }

  const ResampleBackward& call_;
  const Resample& forward_;
  const Grid& grid_;
  Operator operator_;
  Parts<double> memory_;
  double *const original_, *const augmented_, *const image_, *const grad_rows_, *const grad_keys_;
  double *const mapped_, *const state_, *const work_;
};

template <class T>
void resample(const Resample& call, ParallelFor parallel_for) {
  const Grid grid(call);
  run(parallel_for, call.batch, 1, [&](index_t begin, index_t end) {
    ResampleSample<T> sample(call, grid);
    for (index_t i = begin; i < end; ++i) sample(i);
  });
}

template <class T>
void resample_backward(const ResampleBackward& call, ParallelFor parallel_for) {
  const Grid grid(call.forward);
  T* grads = static_cast<T*>(call.grad_heatmaps);
  T* aug_grads = static_cast<T*>(call.grad_aug_heatmaps);
  run(parallel_for, call.forward.batch, 1, [&](index_t begin, index_t end) {
    ResampleBackwardSample<T> sample(call, grid);
    for (index_t i = begin; i < end; ++i) sample(i, grads + i * grid.count(), aug_grads + i * grid.count());
  });
}

}  // namespace cgc::CGC_ISA
