// The scalar rules of the backward, one place for every backend (docs/mathematics.md).
#pragma once

#include <cmath>

#include "platform.h"

namespace cgc::CGC_ISA {

// Below this sum of the fine map a heatmap is near-dead and its gradient is damped by (s + eps) / near_dead_sum.
constexpr double near_dead_sum = 1e-3;

// ReLU that lets NaN through.
template <class Acc>
CGC_HD inline Acc relu(Acc x) {
  return x < 0 ? Acc(0) : x;
}

// Gradient before the ReLU; a NaN heatmap passes its gradient on.
template <class Acc>
CGC_HD inline Acc relu_gradient(Acc heatmap, Acc grad) {
  return heatmap <= 0 ? Acc(0) : grad;
}

// What divides the gradient of m = M / (s + eps) + eps on its way to M, damping included.
CGC_HD inline double normalisation_divisor(double sum, double eps) {
  return sum < near_dead_sum ? near_dead_sum : sum + eps;
}

// 1 / sqrt; 0 for a map that sees nothing, so that its cosine and its gradient are 0.
CGC_HD inline double inverse_root(double square) { return square == 0 ? 0.0 : 1.0 / std::sqrt(square); }

}  // namespace cgc::CGC_ISA
