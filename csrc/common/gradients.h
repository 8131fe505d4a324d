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

// m = M / (s + eps) + eps at one position.
CGC_HD inline double normalised(double heatmap, double sum, double eps) { return heatmap / (sum + eps) + eps; }

// What divides the gradient of m = M / (s + eps) + eps on its way to M, damping included.
CGC_HD inline double normalisation_divisor(double sum, double eps) {
  return sum < near_dead_sum ? near_dead_sum : sum + eps;
}

// Gradient of m back to M at one position; inner = <gradient, M> / (s + eps), sum_y sum_x the position's share of s.
CGC_HD inline double normalisation_gradient(double grad, double inner, double sum_y, double sum_x, double divisor) {
  return (grad - inner * sum_y * sum_x) / divisor;
}

// Gradient of a map m through m / |m| at one position: scale = 1 / |m|, `direction` arrives at the unit map, `share`
// times `cross` comes from the positive, and `radial` times `image`, the Gram image of m, is taken out again.
CGC_HD inline double unit_gradient(double scale, double direction, double share, double cross, double radial,
                                   double image) {
  return scale * (direction + share * cross - radial * image);
}

// 1 / sqrt; 0 for a map that sees nothing, so that its cosine and its gradient are 0.
CGC_HD inline double inverse_root(double square) { return square == 0 ? 0.0 : 1.0 / std::sqrt(square); }

}  // namespace cgc::CGC_ISA
