// Stage resample: heatmaps and a transform -> unit rows and positives, as H x W algebra (docs/mathematics.md, section
// 2). Everything here is H * W-sized and done in double: 1 - positive cancels, and rows are rounded once, when stored.
#pragma once

#include "../common/gradients.h"
#include "../common/taps.h"
#include "executor.h"

namespace cgc::CGC_ISA {

// One image axis: the taps of U, its column sums and K = U^T U.
class Axis {
 public:
  Axis(index_t size, index_t cells) : size(size), cells(cells), taps(size), sums(cells), gram(cells * cells) {
    for (index_t i = 0; i < cells; ++i) sums[i] = 0;
    for (index_t i = 0; i < cells * cells; ++i) gram[i] = 0;
    for (index_t pixel = 0; pixel < size; ++pixel) {
      const Tap tap = taps[pixel] = upsample_tap(pixel, size, cells);
      const double low = 1 - tap.share, high = tap.share;
      sums[tap.low] += low;
      sums[tap.high] += high;
      gram[tap.low * cells + tap.low] += low * low;
      gram[tap.low * cells + tap.high] += low * high;
      gram[tap.high * cells + tap.low] += high * low;
      gram[tap.high * cells + tap.high] += high * high;
    }
  }

  // P = U^T R U and Q = (R U)^T (R U) of one crop, [cells, cells].
  void crop(index_t start, index_t length, bool flip, double* p, double* q) const {
    for (index_t i = 0; i < cells * cells; ++i) p[i] = q[i] = 0;
    const double ratio = double(length) / double(size);
    for (index_t pixel = 0; pixel < size; ++pixel) {
      const Tap source = crop_tap(pixel, size, start, length, flip, ratio);
      const Stencil stencil = blend(taps[source.low], 1 - source.share, taps[source.high], source.share);
      const Tap tap = taps[pixel];
      double* p_low = p + tap.low * cells;
      double* p_high = p + tap.high * cells;
      for (int i = 0; i < stencil.count; ++i) {
        p_low[stencil.cell[i]] += (1 - tap.share) * stencil.share[i];
        p_high[stencil.cell[i]] += tap.share * stencil.share[i];
        double* row = q + stencil.cell[i] * cells;
        for (int j = 0; j < stencil.count; ++j) row[stencil.cell[j]] += stencil.share[i] * stencil.share[j];
      }
    }
  }

  const index_t size, cells;
  const Buffer<Tap> taps;
  const Buffer<double> sums, gram;
};

// Axes of one call, shared by all samples.
struct Grid {
  explicit Grid(const Resample& call) : y(call.size_h, call.height), x(call.size_w, call.width) {}
  index_t count() const { return y.cells * x.cells; }
  Axis y, x;
};

inline double dot(const double* a, const double* b, index_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (index_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// out = a b; a [rows, inner], b [inner, columns]. Row updates rather than dot products: with 7 x 7 maps the latter
// would wait for every addition.
inline void multiply(const double* a, const double* b, index_t rows, index_t inner, index_t columns, double* out) {
  for (index_t i = 0; i < rows; ++i) {
    double* row = out + i * columns;
    for (index_t j = 0; j < columns; ++j) row[j] = 0;
    for (index_t k = 0; k < inner; ++k) {
      const double share = a[i * inner + k];
#pragma omp simd
      for (index_t j = 0; j < columns; ++j) row[j] += share * b[k * columns + j];
    }
  }
}

// out = left m right; left [H, H], right [W, W], m and out [H, W].
inline void sandwich(const Grid& grid, const double* left, const double* m, const double* right, double* out,
                     double* work) {
  const index_t height = grid.y.cells, width = grid.x.cells;
  multiply(left, m, height, height, width, work);
  multiply(work, right, height, width, width, out);
}

inline void transpose(const double* m, index_t count, double* out) {
  for (index_t i = 0; i < count; ++i) {
    for (index_t j = 0; j < count; ++j) out[j * count + i] = m[i * count + j];
  }
}

// The transform of one sample as a linear map of coarse maps.
class Operator {
 public:
  Operator(const Resample& call, const Grid& grid)
      : call_(call),
        grid_(grid),
        p_y_(grid.y.cells * grid.y.cells),
        p_y_transposed_(grid.y.cells * grid.y.cells),
        q_y_(grid.y.cells * grid.y.cells),
        p_x_(grid.x.cells * grid.x.cells),
        p_x_transposed_(grid.x.cells * grid.x.cells),
        q_x_(grid.x.cells * grid.x.cells),
        work_(grid.count()) {}

  void prepare(index_t sample) {
    sample_ = sample;
    if (call_.crops == nullptr) return;
    const std::int64_t* crop = call_.crops + sample * 5;
    grid_.y.crop(crop[0], crop[2], false, p_y_, q_y_);
    grid_.x.crop(crop[1], crop[3], crop[4] != 0, p_x_, q_x_);
    transpose(p_y_, grid_.y.cells, p_y_transposed_);
    transpose(p_x_, grid_.x.cells, p_x_transposed_);
  }

  // image = U^T T(U m U^T) U and gram = (T U)^T (T U) m.
  void apply(const double* m, double* image, double* gram) {
    if (call_.crops != nullptr) {
      sandwich(grid_, p_y_, m, p_x_transposed_, image, work_);
      sandwich(grid_, q_y_, m, q_x_, gram, work_);
      return;
    }
    for (index_t i = 0; i < grid_.count(); ++i) image[i] = gram[i] = 0;
    each_pixel([&](const Tap& y, const Tap& x, const Stencil& from_y, const Stencil& from_x) {
      const double value = gather(m, from_y, from_x);
      scatter(image, y, x, value);
      scatter(gram, from_y, from_x, value);
    });
  }

  // out = (T U)^T U m U^T, the adjoint of `image` above.
  void adjoint(const double* m, double* out) {
    if (call_.crops != nullptr) {
      sandwich(grid_, p_y_transposed_, m, p_x_, out, work_);
      return;
    }
    for (index_t i = 0; i < grid_.count(); ++i) out[i] = 0;
    each_pixel([&](const Tap& y, const Tap& x, const Stencil& from_y, const Stencil& from_x) {
      const index_t width = grid_.x.cells;
      const double* low = m + y.low * width;
      const double* high = m + y.high * width;
      const double value = (1 - y.share) * ((1 - x.share) * low[x.low] + x.share * low[x.high]) +
                           y.share * ((1 - x.share) * high[x.low] + x.share * high[x.high]);
      scatter(out, from_y, from_x, value);
    });
  }

 private:
  // Visits the augmented pixels that see something.
  template <class F>
  void each_pixel(F&& visit) const {
    const double* inverse = call_.inverses + sample_ * 9;
    for (index_t row = 0; row < grid_.y.size; ++row) {
      for (index_t column = 0; column < grid_.x.size; ++column) {
        double x, y;
        Stencil from_y, from_x;
        if (!warp_source(inverse, column, row, x, y)) continue;
        if (!warp_stencil(y, grid_.y.size, [&](cell_t i) { return grid_.y.taps[i]; }, from_y)) continue;
        if (!warp_stencil(x, grid_.x.size, [&](cell_t i) { return grid_.x.taps[i]; }, from_x)) continue;
        visit(grid_.y.taps[row], grid_.x.taps[column], from_y, from_x);
      }
    }
  }

  double gather(const double* m, const Stencil& y, const Stencil& x) const {
    double sum = 0;
    for (int i = 0; i < y.count; ++i) {
      const double* row = m + y.cell[i] * grid_.x.cells;
      double along = 0;
      for (int j = 0; j < x.count; ++j) along += x.share[j] * row[x.cell[j]];
      sum += y.share[i] * along;
    }
    return sum;
  }

  void scatter(double* out, const Stencil& y, const Stencil& x, double value) const {
    for (int i = 0; i < y.count; ++i) {
      double* row = out + y.cell[i] * grid_.x.cells;
      for (int j = 0; j < x.count; ++j) row[x.cell[j]] += value * y.share[i] * x.share[j];
    }
  }

  void scatter(double* out, const Tap& y, const Tap& x, double value) const {
    double* low = out + y.low * grid_.x.cells;
    double* high = out + y.high * grid_.x.cells;
    low[x.low] += value * (1 - y.share) * (1 - x.share);
    low[x.high] += value * (1 - y.share) * x.share;
    high[x.low] += value * y.share * (1 - x.share);
    high[x.high] += value * y.share * x.share;
  }

  const Resample& call_;
  const Grid& grid_;
  index_t sample_ = 0;
  Buffer<double> p_y_, p_y_transposed_, q_y_, p_x_, p_x_transposed_, q_x_, work_;
};

// m = M / (s + eps) + eps; returns s, the sum of the upsampled map.
template <class T>
double normalise(const Grid& grid, const T* heatmap, double eps, double* m) {
  double sum = 0;
  for (index_t i = 0, p = 0; i < grid.y.cells; ++i) {
    for (index_t j = 0; j < grid.x.cells; ++j, ++p) sum += grid.y.sums[i] * grid.x.sums[j] * double(heatmap[p]);
  }
  for (index_t p = 0; p < grid.count(); ++p) m[p] = normalised(double(heatmap[p]), sum, eps);
  return sum;
}

// Gradient of m back to the heatmap, damped where it is near-dead; overwrites grad_m.
template <class T>
void normalise_backward(const Grid& grid, const T* heatmap, double sum, double eps, double* grad_m, T* grad_heatmap) {
  double inner = 0;
  for (index_t p = 0; p < grid.count(); ++p) inner += grad_m[p] * double(heatmap[p]);
  inner /= sum + eps;
  const double divisor = normalisation_divisor(sum, eps);
  for (index_t i = 0, p = 0; i < grid.y.cells; ++i) {
    for (index_t j = 0; j < grid.x.cells; ++j, ++p) {
      grad_heatmap[p] = T(normalisation_gradient(grad_m[p], inner, grid.y.sums[i], grid.x.sums[j], divisor));
    }
  }
}

template <class T>
class ResampleSample {
 public:
  ResampleSample(const Resample& call, const Grid& grid)
      : call_(call),
        grid_(grid),
        operator_(call, grid),
        original_(grid.count()),
        augmented_(grid.count()),
        image_(grid.count()),
        work_(grid.count()) {}

  void operator()(index_t sample) {
    const index_t n = grid_.count();
    normalise(grid_, static_cast<const T*>(call_.heatmaps) + sample * n, call_.eps, original_);
    normalise(grid_, static_cast<const T*>(call_.aug_heatmaps) + sample * n, call_.eps, augmented_);
    double* seen = call_.state + sample * 3 * n;
    double* seen_gram = seen + n;
    double* augmented_seen = seen_gram + n;
    operator_.prepare(sample);
    operator_.apply(original_, seen, seen_gram);
    operator_.adjoint(augmented_, augmented_seen);
    sandwich(grid_, grid_.y.gram, augmented_, grid_.x.gram, image_, work_);
    const double aug_scale = inverse_root(dot(augmented_, image_, n));
    const double seen_scale = inverse_root(dot(original_, seen_gram, n));
    call_.positives[sample] = dot(augmented_, seen, n) * aug_scale * seen_scale;
    if (call_.objective == Objective::mse) return;
    const bool released = call_.objective == Objective::released;
    T* row = static_cast<T*>(call_.rows) + sample * n;
    T* key = static_cast<T*>(call_.keys) + sample * n;
    for (index_t p = 0; p < n; ++p) {
      row[p] = T(released ? augmented_[p] * aug_scale : seen[p] * seen_scale);
      key[p] = T((released ? image_[p] : augmented_[p]) * aug_scale);
    }
  }

 private:
  const Resample& call_;
  const Grid& grid_;
  Operator operator_;
  Buffer<double> original_, augmented_, image_, work_;
};

template <class T>
class ResampleBackwardSample {
 public:
  ResampleBackwardSample(const ResampleBackward& call, const Grid& grid)
      : call_(call),
        forward_(call.forward),
        grid_(grid),
        operator_(call.forward, grid),
        original_(grid.count()),
        augmented_(grid.count()),
        image_(grid.count()),
        grad_rows_(grid.count()),
        grad_keys_(grid.count()),
        mapped_(grid.count()),
        work_(grid.count()) {}

  // Writes the gradients of both heatmaps of one sample, [P] each.
  void operator()(index_t sample, T* grad_heatmap, T* grad_aug_heatmap) {
    const index_t n = grid_.count();
    const T* heatmap = static_cast<const T*>(forward_.heatmaps) + sample * n;
    const T* aug_heatmap = static_cast<const T*>(forward_.aug_heatmaps) + sample * n;
    const double sum = normalise(grid_, heatmap, forward_.eps, original_);
    const double aug_sum = normalise(grid_, aug_heatmap, forward_.eps, augmented_);
    load_upstream(sample);
    unit_gradients(sample);
    normalise_backward(grid_, heatmap, sum, forward_.eps, original_, grad_heatmap);
    normalise_backward(grid_, aug_heatmap, aug_sum, forward_.eps, augmented_, grad_aug_heatmap);
  }

 private:
  void load_upstream(index_t sample) {
    const index_t n = grid_.count();
    const bool contrasts = forward_.objective != Objective::mse;
    const T* rows = static_cast<const T*>(call_.grad_rows) + (contrasts ? sample * n : 0);
    const T* keys = static_cast<const T*>(call_.grad_keys) + (contrasts ? sample * n : 0);
    for (index_t p = 0; p < n; ++p) {
      grad_rows_[p] = contrasts ? double(rows[p]) : 0.0;
      grad_keys_[p] = contrasts ? double(keys[p]) : 0.0;
    }
  }

  // Gradients of the normalised maps, left in original_ and augmented_.
  void unit_gradients(index_t sample) {
    const index_t n = grid_.count();
    const double* seen = forward_.state + sample * 3 * n;
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
    for (index_t p = 0; p < n; ++p) {
      original_[p] = unit_gradient(seen_scale, mapped_[p], grad * aug_scale, augmented_seen[p],
                                   seen_radial * seen_scale, seen_gram[p]);
      augmented_[p] =
          unit_gradient(aug_scale, aug_direction[p], grad * seen_scale, seen[p], aug_radial * aug_scale, image_[p]);
    }
  }

  const ResampleBackward& call_;
  const Resample& forward_;
  const Grid& grid_;
  Operator operator_;
  Buffer<double> original_, augmented_, image_, grad_rows_, grad_keys_, mapped_, work_;
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
