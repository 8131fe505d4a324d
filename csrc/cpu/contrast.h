// Stage contrast: rows, keys, positives -> loss. Similarities live in a strip of keys at a time; the backward
// recomputes them from the row losses. Logits are taken relative to the positive, whose own logit is then 0.
#pragma once

#include <cmath>

#include "executor.h"

namespace cgc::CGC_ISA {

constexpr index_t strip = 256;

template <class T>
class ContrastRow {
 public:
  explicit ContrastRow(const Contrast& call)
      : call_(call), rows_(static_cast<const T*>(call.rows)), keys_(static_cast<const T*>(call.keys)) {}

  const T* row(index_t i) const { return rows_ + i * call_.length; }
  const T* key(index_t j) const { return keys_ + j * call_.length; }

  T logit(index_t i, index_t j) const {
    const T* a = row(i);
    const T* b = key(j);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (index_t k = 0; k < call_.length; ++k) sum += a[k] * b[k];
    return T((double(sum) - call_.positives[i]) / call_.temperature);
  }

  // log(1 + sum over j != i of exp(logit_ij)), with a running maximum.
  double loss(index_t i) const {
    T logits[strip];
    T largest = 0;
    double sum = 1;
    for (index_t start = 0; start < call_.batch; start += strip) {
      const index_t count = minimum(strip, call_.batch - start);
      T highest = largest;
      for (index_t j = 0; j < count; ++j) {
        logits[j] = logit(i, start + j);
        if (start + j != i) highest = maximum(highest, logits[j]);
      }
      sum *= std::exp(double(largest) - double(highest));
      largest = highest;
      for (index_t j = 0; j < count; ++j) {
        if (start + j != i) sum += std::exp(logits[j] - largest);
      }
    }
    return double(largest) + std::log(sum);
  }

  // Probability that row i gives to key j, i != j.
  T probability(index_t i, index_t j) const { return std::exp(T(logit(i, j) - T(call_.row_losses[i]))); }

 private:
  const Contrast& call_;
  const T* rows_;
  const T* keys_;
};

template <class T>
double contrast(const Contrast& call, ParallelFor parallel_for) {
  const ContrastRow<T> rows(call);
  run(parallel_for, call.batch, maximum(index_t(1), index_t(1024) / call.batch), [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) call.row_losses[i] = rows.loss(i);
  });
  double total = 0;
  for (index_t i = 0; i < call.batch; ++i) total += call.row_losses[i];
  return total / double(call.batch);
}

template <class T>
void add_scaled(T scale, const T* values, T* sums, index_t count) {
#pragma omp simd
  for (index_t k = 0; k < count; ++k) sums[k] += scale * values[k];
}

template <class T>
void contrast_backward(const ContrastBackward& call, ParallelFor parallel_for) {
  const Contrast& forward = call.forward;
  const ContrastRow<T> rows(forward);
  const index_t batch = forward.batch, length = forward.length;
  const double scale = call.grad_loss / (forward.temperature * double(batch));
  run(parallel_for, batch, maximum(index_t(1), index_t(1024) / batch), [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T* grad_row = static_cast<T*>(call.grad_rows) + i * length;
      T* grad_key = static_cast<T*>(call.grad_keys) + i * length;
      for (index_t k = 0; k < length; ++k) grad_row[k] = grad_key[k] = 0;
      double others = 0;
      for (index_t j = 0; j < batch; ++j) {
        if (j == i) continue;
        const double probability = double(rows.probability(i, j));
        others += probability;
        add_scaled(T(scale * probability), rows.key(j), grad_row, length);
        add_scaled(T(scale * double(rows.probability(j, i))), rows.row(j), grad_key, length);
      }
      call.grad_positives[i] = -scale * others;
    }
  });
}

}  // namespace cgc::CGC_ISA
