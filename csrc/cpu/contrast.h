// Stage contrast: rows, keys, positives -> loss, in tiles of 4 x 64 similarities that stay in registers and the first
// cache; [B, B] is never stored. Logits are taken relative to the positive, whose own logit is then 0; the backward
// recomputes the tiles from the row losses.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "../common/loss.h"
#include "executor.h"
#include "exponential.h"
#include "vectors.h"

namespace cgc::CGC_ISA {

constexpr index_t tile_rows = 4;
constexpr index_t strip = 64;

// Columns of a strip that hold rows, and zeros up to whole steps of `similarities`: all 64 but in the last strip.
template <class T>
index_t strip_columns(index_t batch, index_t start) {
  return minimum(strip, round_up(batch - start, 2 * Vector<T>::lanes));
}

// [B, N] transposed within each strip of 64, with zeros up to the columns of the strip; and, if wanted, as it is,
// padded with zeros to those columns and to whole vectors.
template <class T>
class Packed {
 public:
  Packed(const void* values, index_t batch, index_t length, bool with_rows)
      : length_(length),
        stride_(padded(length)),
        memory_(round_up(batch, strip) * length + (with_rows ? padded_rows(batch) * stride_ : 0)),
        strips_(memory_.take(round_up(batch, strip) * length)),
        rows_(with_rows ? memory_.take(padded_rows(batch) * stride_) : nullptr) {
    const T* from = static_cast<const T*>(values);
    for (index_t i = 0; i < padded_rows(batch); ++i, from += length) {
      const bool inside = i < batch;
      T* column = strips_ + i / strip * strip * length + i % strip;
      for (index_t k = 0; k < length; ++k) column[k * strip] = inside ? from[k] : T(0);
      if (!with_rows) continue;
      T* row = rows_ + i * stride_;
      for (index_t k = 0; k < stride_; ++k) row[k] = inside && k < length ? from[k] : T(0);
    }
  }

  static index_t padded_rows(index_t batch) {
    const index_t whole = (batch - 1) / strip * strip;
    return whole + strip_columns<T>(batch, whole);
  }

  // Whole vectors; never a large power of two, as of 32 x 32 maps, which would map all rows to the same cache sets.
  static index_t padded(index_t length) {
    const index_t stride = round_up(length, Vector<T>::lanes);
    return stride % 128 == 0 ? stride + Vector<T>::lanes : stride;
  }

  index_t length() const { return length_; }
  index_t stride() const { return stride_; }
  const T* row(index_t i) const { return rows_ + i * stride_; }
  // [N, 64], of rows start .. start + 63.
  const T* transposed(index_t start) const { return strips_ + start * length_; }

 private:
  index_t length_, stride_;
  Parts<T> memory_;
  T *const strips_, *const rows_;
};

// Four rows of [B, N] from row `first` on; the last one stands for those beyond it.
template <class T>
struct TileRows {
  const T* row[tile_rows];

  TileRows(const void* values, index_t length, index_t first, index_t last) {
    for (index_t r = 0; r < tile_rows; ++r) {
      row[r] = static_cast<const T*>(values) + minimum(first + r, last - 1) * length;
    }
  }
};

// tile[r][j] = <a_r, b_(start + j)> for the columns j of a strip.
template <class T>
void similarities(const TileRows<T>& a, const Packed<T>& b, index_t start, index_t count, T (*tile)[strip]) {
  using V = typename Vector<T>::type;
  constexpr index_t lanes = Vector<T>::lanes;
  for (index_t j = 0; j < count; j += 2 * lanes) {
    const T* columns = b.transposed(start) + j;
    V sums[tile_rows][2] = {};
    for (index_t k = 0; k < b.length(); ++k, columns += strip) {
      const V left = *reinterpret_cast<const V*>(columns);
      const V right = *reinterpret_cast<const V*>(columns + lanes);
      for (index_t r = 0; r < tile_rows; ++r) {
        sums[r][0] += a.row[r][k] * left;
        sums[r][1] += a.row[r][k] * right;
      }
    }
    for (index_t r = 0; r < tile_rows; ++r) std::memcpy(tile[r] + j, sums[r], sizeof(sums[r]));
  }
}

// grads[r] += sum_j weights[r][j] b_(start + j) over the columns j of a strip; grads: [4, stride].
template <class T>
void accumulate(const T (*weights)[strip], const Packed<T>& b, index_t start, index_t count, T* grads) {
  using V = typename Vector<T>::type;
  for (index_t j = 0; j < count; j += 4) {
    const T* rows = b.row(start + j);
    for (index_t k = 0; k < b.stride(); k += Vector<T>::lanes, rows += Vector<T>::lanes) {
      V values[4];
      for (index_t i = 0; i < 4; ++i) values[i] = *reinterpret_cast<const V*>(rows + i * b.stride());
      for (index_t r = 0; r < tile_rows; ++r) {
        const T* w = weights[r] + j;
        V& sum = *reinterpret_cast<V*>(grads + r * b.stride() + k);
        sum += (w[0] * values[0] + w[1] * values[1]) + (w[2] * values[2] + w[3] * values[3]);
      }
    }
  }
}

constexpr index_t most_block_rows = 32;

// Rows that share one pass over all strips: more of them save memory traffic, fewer keep all threads busy.
inline index_t block_rows(index_t count) {
  return tile_rows * clamp(count / 256, index_t(1), most_block_rows / tile_rows);
}

// Runs body(first, last) for every block of a call's rows.
template <class F>
void run_blocks(ParallelFor parallel_for, const Contrast& call, F&& body) {
  const index_t rows = block_rows(call.count), grain = maximum(index_t(1), index_t(4096) / (call.batch * rows));
  run(parallel_for, round_up(call.count, rows) / rows, grain, [&](index_t begin, index_t end) {
    for (index_t block = begin; block < end; ++block) {
      body(call.first + block * rows, call.first + minimum(call.count, (block + 1) * rows));
    }
  });
}

// log(1 + sum over j != i of exp(logit_ij)) of one row, strip after strip, with a running maximum.
template <class T>
class RowLoss {
 public:
  // Takes similarities and destroys them; own: index of the row itself, outside [0, count) if it is not in the strip.
  void add(T* values, index_t count, index_t own, T positive, T inverse_temperature) {
#pragma omp simd
    for (index_t j = 0; j < count; ++j) values[j] = (values[j] - positive) * inverse_temperature;
    const bool has_own = own >= 0 && own < count;
    if (has_own) values[own] = -std::numeric_limits<T>::infinity();
    T highest = largest_;
    for (index_t j = 0; j < count; ++j) highest = maximum(highest, values[j]);
#pragma omp simd
    for (index_t j = 0; j < count; ++j) values[j] = exp_nonpositive(values[j] - highest);
    if (has_own) values[own] = 0;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (index_t j = 0; j < count; ++j) sum += values[j];
    others_ = others_ * std::exp(double(largest_) - double(highest)) + double(sum);
    largest_ = highest;
  }

  double value() const { return row_loss(double(largest_), others_); }

 private:
  T largest_ = 0;
  double others_ = 0;
};

template <class T>
double contrast(const Contrast& call, ParallelFor parallel_for) {
  const index_t batch = call.batch;
  const Packed<T> keys(call.keys, batch, call.length, false);
  run_blocks(parallel_for, call, [&](index_t first, index_t last) {
    alignas(64) T tile[tile_rows][strip];
    RowLoss<T> losses[most_block_rows];
    for (index_t start = 0; start < batch; start += strip) {
      for (index_t i = first; i < last; ++i) {
        const index_t r = (i - first) % tile_rows;
        if (r == 0) {
          similarities(TileRows<T>(call.rows, call.length, i, last), keys, start, strip_columns<T>(batch, start), tile);
        }
        losses[i - first].add(tile[r], minimum(strip, batch - start), i - start, T(call.positives[i]),
                              T(1 / call.temperature));
      }
    }
    for (index_t i = first; i < last; ++i) call.row_losses[i - call.first] = losses[i - first].value();
  });
  double total = 0;
  for (index_t i = 0; i < call.count; ++i) total += call.row_losses[i];
  return total / double(call.count);
}

// The backward: weights g_ij = probability_ij / (tau B), their sums with the keys and with the rows, one after the
// other so that only one side is packed at a time.
template <class T>
class ContrastGradient {
 public:
  ContrastGradient(const ContrastBackward& call, ParallelFor parallel_for)
      : call_(call.forward),
        to_(call),
        parallel_for_(parallel_for),
        memory_(2 * round_up(call_.batch, strip)),
        positives_(memory_.take(round_up(call_.batch, strip))),
        losses_(memory_.take(round_up(call_.batch, strip))),
        inverse_temperature_(T(1 / call_.temperature)),
        scale_(T(value_of(call.grad_loss) / (call_.temperature * double(call_.batch)))) {
    for (index_t i = 0; i < round_up(call_.batch, strip); ++i) {
      positives_[i] = i < call_.batch ? T(call_.positives[i]) : T(0);
      losses_[i] = i < call_.batch ? T(call_.row_losses[i]) : T(0);
    }
  }

  // Of the rows and of their positives.
  void rows() const {
    for (index_t i = 0; i < call_.count; ++i) to_.grad_positives[i] = 0;
    each_tile(call_.rows, call_.keys, to_.grad_rows, [&](index_t i, index_t start, index_t count, T* values) {
      const T positive = positives_[i], loss = losses_[i], inverse = inverse_temperature_;
#pragma omp simd
      for (index_t j = 0; j < count; ++j) values[j] = exp_nonpositive((values[j] - positive) * inverse - loss);
      to_.grad_positives[i - call_.first] -= weigh(values, i, start, count);
    });
  }

  void keys() const {
    each_tile(call_.keys, call_.rows, to_.grad_keys, [&](index_t j, index_t start, index_t count, T* values) {
      const T* positives = positives_ + start;
      const T* losses = losses_ + start;
      const T inverse = inverse_temperature_;
#pragma omp simd
      for (index_t i = 0; i < count; ++i) values[i] = exp_nonpositive((values[i] - positives[i]) * inverse - losses[i]);
      weigh(values, j, start, count);
    });
  }

 private:
  // grad_i = sum_j weight_ij b_j for the call's rows i of a, where weigh(i, first j, count, values) turns similarities
  // <a_i, b_j> into weights.
  template <class F>
  void each_tile(const void* a, const void* columns, void* to, F&& weigh) const {
    const Packed<T> b(columns, call_.batch, call_.length, true);
    run_blocks(parallel_for_, call_, [&](index_t first, index_t last) {
      alignas(64) T tile[tile_rows][strip];
      Buffer<T> grads(round_up(last - first, tile_rows) * b.stride());
      for (index_t k = 0; k < round_up(last - first, tile_rows) * b.stride(); ++k) grads[k] = 0;
      for (index_t start = 0; start < call_.batch; start += strip) {
        const index_t count = strip_columns<T>(call_.batch, start);
        for (index_t i = first; i < last; i += tile_rows) {
          similarities(TileRows<T>(a, call_.length, i, last), b, start, count, tile);
          for (index_t r = 0; r < minimum(tile_rows, last - i); ++r) weigh(i + r, start, count, tile[r]);
          accumulate<T>(tile, b, start, count, grads + (i - first) * b.stride());
        }
      }
      for (index_t i = first; i < last; ++i) {
        T* out = static_cast<T*>(to) + (i - call_.first) * call_.length;  // null where rows are empty
        for (index_t k = 0; k < call_.length; ++k) out[k] = grads[(i - first) * b.stride() + k];
      }
    });
  }

  // Probabilities to weights, none for the pair with itself and for padding; returns their sum.
  double weigh(T* probabilities, index_t own, index_t start, index_t count) const {
    for (index_t j = call_.batch - start; j < count; ++j) probabilities[j] = 0;
    if (own >= start && own < start + count) probabilities[own - start] = 0;
    const T scale = scale_;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (index_t j = 0; j < count; ++j) {
      probabilities[j] *= scale;
      sum += probabilities[j];
    }
    return double(sum);
  }

  const Contrast& call_;
  const ContrastBackward& to_;
  const ParallelFor parallel_for_;
  Parts<T> memory_;
  T *const positives_, *const losses_;
  const T inverse_temperature_, scale_;
};

template <class T>
void contrast_backward(const ContrastBackward& call, ParallelFor parallel_for) {
  const ContrastGradient<T> gradient(call, parallel_for);
  gradient.rows();
  gradient.keys();
}

}  // namespace cgc::CGC_ISA
