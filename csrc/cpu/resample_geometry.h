// The transform of a sample as a linear map of coarse maps (docs/mathematics.md, section 2), in double.
#pragma once

#include <memory>

#include "dtypes.h"
#include "resample_axis.h"

namespace cgc::CGC_ISA {

// Axes of one call, shared by all samples; one for both directions where they are alike.
class Grid {
  const std::unique_ptr<const Axis> own_x_;

 public:
  explicit Grid(const Resample& call)
      : own_x_(make_x(call)), y(call.size_h, call.height), x(own_x_ ? *own_x_ : y), sums(count()) {
    for (index_t i = 0; i < y.cells; ++i) {
      for (index_t j = 0; j < x.cells; ++j) sums[i * x.cells + j] = y.sums[i] * x.sums[j];
    }
  }

  index_t count() const { return y.cells * x.cells; }
  index_t room() const { return count() + matrix_padding; }

  const Axis y;
  const Axis& x;
  const Buffer<double> sums;  // of the upsampled map, by cell: u_H u_W^T

 private:
  static Axis* make_x(const Resample& call) {
    const bool alike = call.size_h == call.size_w && call.height == call.width;
    return alike ? nullptr : new Axis(call.size_w, call.width);
  }
};

inline double dot(const double* a, const double* b, index_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (index_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// out = a b; a [rows, inner]. Row by row, so that the next row overwrites what is written behind one.
inline void multiply(const double* a, const double* b, index_t rows, index_t inner, index_t columns, double* out) {
  for (index_t i = 0; i < rows; ++i) {
    for (index_t j = 0; j < columns; j += Vector<double>::lanes) {
      Vector<double>::type sum = {};
      for (index_t k = 0; k < inner; ++k) sum += a[i * inner + k] * load(b + k * columns + j);
      store(sum, out + i * columns + j);
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
        memory_(3 * (square(grid.y) + square(grid.x)) + grid.room()),
        p_y_(memory_.take(square(grid.y))),
        p_y_transposed_(memory_.take(square(grid.y))),
        q_y_(memory_.take(square(grid.y))),
        p_x_(memory_.take(square(grid.x))),
        p_x_transposed_(memory_.take(square(grid.x))),
        q_x_(memory_.take(square(grid.x))),
        work_(memory_.take(grid.room())) {}

  void prepare(index_t sample) {
    sample_ = sample;
    if (warps()) return;
    grid_.y.crop(crop_axis(call_, 0, sample), p_y_, q_y_);
    grid_.x.crop(crop_axis(call_, 1, sample), p_x_, q_x_);
    transpose(p_y_, grid_.y.cells, p_y_transposed_);
    transpose(p_x_, grid_.x.cells, p_x_transposed_);
  }

  // image = U^T T(U m U^T) U and gram = (T U)^T (T U) m.
  void apply(const double* m, double* image, double* gram) {
    if (!warps()) {
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
    if (!warps()) {
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
  static index_t square(const Axis& axis) { return axis.cells * axis.cells + matrix_padding; }

  bool warps() const { return call_.inverses != nullptr; }

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
  Parts<double> memory_;
  double *const p_y_, *const p_y_transposed_, *const q_y_, *const p_x_, *const p_x_transposed_, *const q_x_;
  double* const work_;
};

}  // namespace cgc::CGC_ISA
