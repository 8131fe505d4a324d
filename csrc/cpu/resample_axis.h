// One axis of the views: where its pixels take their values from, and the matrices that follow (docs/mathematics.md,
// section 2), in double.
#pragma once

#include "../common/resample_crop.h"
#include "../common/resample_taps.h"
#include "executor.h"
#include "vectors.h"

namespace cgc::CGC_ISA {

// `count` values stretched over `size` pixels: pixel p lies at ((2 p + 1) count - size) / (2 size), clamped to them. In
// integers that is exact: a value that a pixel does not see has no share in it.
class Stretch {
 public:
  Stretch(index_t count, index_t size) : count_(count), size_(size), unit_(0.5 / double(size)) {}

  Tap operator[](index_t pixel) const {
    const index_t position = clamp((2 * pixel + 1) * count_ - size_, index_t(0), (count_ - 1) * 2 * size_);
    const index_t low = index_t((double(position) + 0.5) * unit_);
    return {cell_t(low), cell_t(minimum(low + 1, count_ - 1)), double(position - low * 2 * size_) * unit_};
  }

  // The first pixel at or behind a value.
  index_t first(index_t value) const { return (size_ * (2 * value + 1) + count_ - 1) / (2 * count_); }

  // The first pixel at or behind `next`, or where it is clamped, of those behind `pixel`, which lies behind value
  // `low`.
  index_t end(index_t pixel, index_t low, index_t next) const {
    if (low == count_ - 1) return size_;
    return (2 * pixel + 1) * count_ < size_ ? first(0) : first(minimum(next, count_ - 1));
  }

 private:
  const index_t count_, size_;
  const double unit_;
};

// The sum of products of two series of `count` numbers from the sums and the differences of their ends, where both
// change by equal steps.
class SeriesProduct {
 public:
  explicit SeriesProduct(index_t count)
      : mean_(0.25 * double(count)), slope_(count > 1 ? double(count * (count + 1)) / (12.0 * double(count - 1)) : 0) {}

  double operator()(double sum, double difference, double other_sum, double other_difference) const {
    return mean_ * sum * other_sum + slope_ * difference * other_difference;
  }

 private:
  const double mean_, slope_;
};

// Numbers that are read behind a matrix, and written behind a product, for whole vectors: room for them follows each.
constexpr index_t matrix_padding = Vector<double>::lanes;

// The taps of U, its column sums and K = U^T U.
class Axis {
 public:
  Axis(index_t size, index_t cells)
      : size(size), cells(cells), taps(size), sums(cells), gram(cells * cells + matrix_padding), ends_(size) {
    const Stretch up(cells, size);
    for (index_t pixel = 0, end = 0; pixel < size; ++pixel) {
      taps[pixel] = up[pixel];
      if (pixel == end) end = up.end(pixel, taps[pixel].low, taps[pixel].low + 1);
      ends_[pixel] = end;
    }
    const Buffer<double> again(cells * cells);
    crop({int(size), int(cells), 0, int(size), false}, gram, again);  // R is the identity
    for (index_t i = 0; i < cells; ++i) {  // the rows of U add up to 1, so that those of K are its column sums
      sums[i] = 0;
      for (index_t j = 0; j < cells; ++j) sums[i] += gram[i * cells + j];
    }
  }

  // P = U^T R U and Q = (R U)^T (R U) of one crop, [cells, cells], from runs of pixels over which every entry of U and
  // of R U changes by equal steps.
  void crop(const CropAxis& part, double* p, double* q) const {
    for (index_t i = 0; i < cells * cells; ++i) p[i] = q[i] = 0;
    const Stretch source(part.length, size);
    for (index_t pixel = 0, end; pixel < size; pixel = end) {
      const Tap from = source[pixel];
      // Both pixels that it reads belong to the same two cells up to here; or it reads across a border of these.
      const index_t next = maximum(index_t(from.low) + 1, ends_[part.start + from.low] - part.start - 1);
      end = minimum(ends_[pixel], source.end(pixel, from.low, next));
      add_run(part, pixel, end, read(part, from), read(part, source[end - 1]), p, q);
    }
  }

  const index_t size, cells;
  const Buffer<Tap> taps;
  const Buffer<double> sums, gram;

 private:
  // What a pixel of the crop reads.
  Stencil read(const CropAxis& part, const Tap& from) const {
    return blend(taps[part.start + from.low], 1 - from.share, taps[part.start + from.high], from.share);
  }

  // Pixels [first, end), the first and the last of which read `a` and `b`, in the same cells. A flip turns U round.
  void add_run(const CropAxis& part, index_t first, index_t end, const Stencil& a, const Stencil& b, double* p,
               double* q) const {
    const SeriesProduct product(end - first);
    const Tap &low = taps[first], &high = taps[end - 1];
    double* p_low = p + (part.flip ? cells - 1 - low.low : low.low) * cells;
    double* p_high = p + (part.flip ? cells - 1 - low.high : low.high) * cells;
    for (int i = 0; i < a.count; ++i) {
      const double sum = a.share[i] + b.share[i], difference = b.share[i] - a.share[i];
      p_low[a.cell[i]] += product((1 - low.share) + (1 - high.share), low.share - high.share, sum, difference);
      p_high[a.cell[i]] += product(low.share + high.share, high.share - low.share, sum, difference);
      for (int j = 0; j < a.count; ++j) {
        q[a.cell[i] * cells + a.cell[j]] += product(sum, difference, a.share[j] + b.share[j], b.share[j] - a.share[j]);
      }
    }
  }

  const Buffer<index_t> ends_;
};

}  // namespace cgc::CGC_ISA
