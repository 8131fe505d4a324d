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
template <class Real>
CGC_HD inline Real normalised(Real heatmap, Real sum, Real eps) {
  return heatmap / (sum + eps) + eps;
}

// What divides the gradient of m = M / (s + eps) + eps on its way to M, damping included.
template <class Real>
CGC_HD inline Real normalisation_divisor(Real sum, Real eps) {
  return sum < Real(near_dead_sum) ? Real(near_dead_sum) : sum + eps;
}

// Gradient of m back to M at one position; inner = <gradient, M> / (s + eps), share: of a unit of M in s.
template <class Real>
CGC_HD inline Real normalisation_gradient(Real grad, Real inner, Real share, Real divisor) {
  return (grad - inner * share) / divisor;
}

// What scales the gradient of a unit view T(m) / |T(m)| on its way to m: scale = 1 / |T(m)|, but 1 / eps where |T(m)| <
// eps. The view is near-blind then: it sees less than a pixel.
template <class Real>
CGC_HD inline Real view_gradient_scale(Real scale, Real eps) {
  return minimum(scale, Real(1) / eps);
}

// Gradient of a map m through m / |m| at one position: scale = 1 / |m|, `direction` arrives at the unit map, `share`
// times `cross` comes from the positive, and `radial` times `image`, the Gram image of m, is taken out again.
template <class Real>
CGC_HD inline Real unit_gradient(Real scale, Real direction, Real share, Real cross, Real radial, Real image) {
  return scale * (direction + share * cross - radial * image);
}

// 1 / sqrt; 0 for a map that sees nothing, so that its cosine and its gradient are 0.
template <class Real>
CGC_HD inline Real inverse_root(Real square) {
  return square == 0 ? Real(0) : Real(1) / std::sqrt(square);
}

}  // namespace cgc::CGC_ISA
