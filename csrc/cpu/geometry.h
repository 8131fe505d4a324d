// The axes of a view and the transform of a sample as linear maps of coarse maps (docs/mathematics.md, section 2), all
// in double.
#pragma once

#include <memory>

#include "../common/columns.h"
#include "../common/taps.h"
#include "executor.h"
#include "vectors.h"

namespace cgc::CGC_ISA {

// P and Q of a crop, pixel by pixel. Neighbours mostly read the same two cells, and belong to the same two: such a run
// is summed in registers, where a sum in memory would wait for every store.
class CropRun {
 public:
  CropRun(index_t cells, double* p, double* q) : cells_(cells), p_(p), q_(q) {}
  ~CropRun() { flush(); }

  // A pixel of `tap` that reads (1 - share) * cell `from.low` + share * cell `from.high`.
  void add(const Tap& tap, const Tap& from, double share) {
    if (tap.low != tap_.low || from.low != from_.low) {
      flush();
      tap_ = tap, from_ = from;
    }
    const double rest = 1 - share;
    p_low_low_ += (1 - tap.share) * rest, p_low_high_ += (1 - tap.share) * share;
    p_high_low_ += tap.share * rest, p_high_high_ += tap.share * share;
    q_low_ += rest * rest, q_mixed_ += rest * share, q_high_ += share * share;
  }

  // A pixel that reads more than two cells.
  void add(const Tap& tap, const Stencil& from) {
    double* p_low = p_ + tap.low * cells_;
    double* p_high = p_ + tap.high * cells_;
    for (int i = 0; i < from.count; ++i) {
      p_low[from.cell[i]] += (1 - tap.share) * from.share[i];
      p_high[from.cell[i]] += tap.share * from.share[i];
      double* row = q_ + from.cell[i] * cells_;
      for (int j = 0; j < from.count; ++j) row[from.cell[j]] += from.share[i] * from.share[j];
    }
  }

 private:
  void flush() {
    if (tap_.low < 0) return;
    double* p_low = p_ + tap_.low * cells_;
    double* p_high = p_ + tap_.high * cells_;
    double* q_low = q_ + from_.low * cells_;
    double* q_high = q_ + from_.high * cells_;
    p_low[from_.low] += p_low_low_, p_low[from_.high] += p_low_high_;
    p_high[from_.low] += p_high_low_, p_high[from_.high] += p_high_high_;
    q_low[from_.low] += q_low_, q_low[from_.high] += q_mixed_;
    q_high[from_.low] += q_mixed_, q_high[from_.high] += q_high_;
    p_low_low_ = p_low_high_ = p_high_low_ = p_high_high_ = q_low_ = q_mixed_ = q_high_ = 0;
  }

  index_t cells_;
  double *p_, *q_;
  Tap tap_{-1, -1, 0}, from_{-1, -1, 0};
  double p_low_low_ = 0, p_low_high_ = 0, p_high_low_ = 0, p_high_high_ = 0, q_low_ = 0, q_mixed_ = 0, q_high_ = 0;
};

// One image axis: the taps of U, its column sums and K = U^T U.
class Axis {
 public:
  Axis(index_t size, index_t cells) : size(size), cells(cells), taps(size), sums(cells), gram(cells * cells) {
    for (index_t i = 0; i < cells; ++i) sums[i] = 0;
    for (index_t i = 0; i < cells * cells; ++i) gram[i] = 0;
    for (index_t pixel = 0; pixel < size;) pixel = add_run(pixel);
  }

  // P = U^T R U and Q = (R U)^T (R U) of one crop, [cells, cells].
  void crop(index_t start, index_t length, bool flip, double* p, double* q) const {
    for (index_t i = 0; i < cells * cells; ++i) p[i] = q[i] = 0;
    const double ratio = double(length) / double(size);
    CropRun run(cells, p, q);
    for (index_t pixel = 0; pixel < size; ++pixel) {
      const Tap source = crop_tap(pixel, size, start, length, flip, ratio);
      const Tap &tap = taps[pixel], &low = taps[source.low], &high = taps[source.high];
      if (low.low == high.low) {
        run.add(tap, low, (1 - source.share) * low.share + source.share * high.share);
      } else {
        run.add(tap, blend(low, 1 - source.share, high, source.share));
      }
    }
  }

  const index_t size, cells;
  const Buffer<Tap> taps;
  const Buffer<double> sums, gram;

 private:
  // Pixels from `first` on that belong to the same two cells; returns the next one.
  index_t add_run(index_t first) {
    Tap tap = upsample_tap(first, size, cells);
    const cell_t low = tap.low, high = tap.high;
    double low_sum = 0, high_sum = 0, low_low = 0, low_high = 0, high_high = 0;
    index_t pixel = first;
    while (tap.low == low) {
      taps[pixel] = tap;
      const double share = tap.share, rest = 1 - share;
      low_sum += rest, high_sum += share;
      low_low += rest * rest, low_high += rest * share, high_high += share * share;
      if (++pixel == size) break;
      tap = upsample_tap(pixel, size, cells);
    }
    sums[low] += low_sum, sums[high] += high_sum;
    gram[low * cells + low] += low_low, gram[low * cells + high] += low_high;
    gram[high * cells + low] += low_high, gram[high * cells + high] += high_high;
    return pixel;
  }
};

// Axes of one call, shared by all samples; one for both directions where they are alike.
class Grid {
  const std::unique_ptr<const Axis> own_x_;

 public:
  explicit Grid(const Resample& call) : own_x_(make_x(call)), y(call.size_h, call.height), x(own_x_ ? *own_x_ : y) {}
  index_t count() const { return y.cells * x.cells; }

  const Axis y;
  const Axis& x;

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

// out = a b; a [rows, inner], b [inner, columns]. Row updates rather than dot products: with 7 x 7 maps the latter
// would wait for every addition.
template <class Columns>
void multiply_rows(const double* a, const double* b, index_t rows, index_t inner, Columns columns, double* out) {
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

// The maps of ResNets have code of their own: a loop over so few columns spends its time on deciding how to go on.
inline void multiply(const double* a, const double* b, index_t rows, index_t inner, index_t columns, double* out) {
  switch (columns) {
    case 7:
      return multiply_rows(a, b, rows, inner, Constant<7>(), out);
    case 14:
      return multiply_rows(a, b, rows, inner, Constant<14>(), out);
    default:
      return multiply_rows(a, b, rows, inner, columns, out);
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
        memory_(3 * grid.y.cells * grid.y.cells + 3 * grid.x.cells * grid.x.cells + grid.count()),
        p_y_(memory_.take(grid.y.cells * grid.y.cells)),
        p_y_transposed_(memory_.take(grid.y.cells * grid.y.cells)),
        q_y_(memory_.take(grid.y.cells * grid.y.cells)),
        p_x_(memory_.take(grid.x.cells * grid.x.cells)),
        p_x_transposed_(memory_.take(grid.x.cells * grid.x.cells)),
        q_x_(memory_.take(grid.x.cells * grid.x.cells)),
        work_(memory_.take(grid.count())) {}

  void prepare(index_t sample) {
    sample_ = sample;
    if (warps()) return;
    grid_.y.crop(crop(crop_top), crop(crop_height), false, p_y_, q_y_);
    grid_.x.crop(crop(crop_left), crop(crop_width), crop(crop_flip) != 0, p_x_, q_x_);
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
  bool warps() const { return call_.inverses != nullptr; }

  index_t crop(CropField field) const { return value_of(call_.crops[field], sample_); }

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
