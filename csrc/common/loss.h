// The scalar rules of the loss, one place for every device (docs/mathematics.md).
#pragma once

#include <cmath>

#include "calls.h"
#include "platform.h"

namespace cgc::CGC_ISA {

CGC_HD inline double value_of(const Scalar& scalar) {
  return scalar.float64 ? *static_cast<const double*>(scalar.data) : double(*static_cast<const float*>(scalar.data));
}

CGC_HD inline void assign(const Scalar& scalar, double value) {
  if (scalar.float64) {
    *static_cast<double*>(scalar.data) = value;
  } else {
    *static_cast<float*>(scalar.data) = float(value);
  }
}

// log(1 + sum of exp(logit)) from the largest logit, or 0 if none is positive, and others = sum of exp(logit -
// largest).
CGC_HD inline double row_loss(double largest, double others) {
  return largest + std::log1p(others + std::expm1(-largest));
}

// ||a - o||^2 of unit maps. A cosine may exceed 1 by its rounding, a square is never negative; it is 0 only where a
// warp sees nothing, whose map is zero.
CGC_HD inline double unit_square(double positive) {
  if (positive == 0) return 1;
  return positive > 1 ? 0 : 2 * (1 - positive);
}

// Gradient of every positive of the mse objective: of one that its rounding has lifted above 1 too, since what two maps
// that agree to 1e-8 still differ by is a gradient of that size.
CGC_HD inline double mse_gradient(double grad_loss, const Resample& call) {
  return -2 * grad_loss / (double(call.batch) * double(call.size_h * call.size_w));
}

}  // namespace cgc::CGC_ISA
