// Where every pixel takes its value from: bilinear upsampling, crop-resize-flip and warps (docs/mathematics.md).
#pragma once

#include <cmath>

#include "platform.h"

namespace cgc::CGC_ISA {

// Pixels and cells of one axis: a view has at most 65536.
using cell_t = std::int32_t;

// (1 - share) * value[low] + share * value[high], share in [0, 1].
struct Tap {
  cell_t low, high;
  double share;
};

// Taps of `count` values at a position in [0, count - 1].
CGC_HD inline Tap tap_at(double position, cell_t count) {
  const cell_t low = cell_t(position);
  return {low, minimum(low + 1, count - 1), position - double(low)};
}

// Row `pixel` of U: `cells` values upsampled to `size` (align_corners = false). A quotient of integers, exact where it
// is whole: a value that a pixel does not see has no share in it.
CGC_HD inline Tap upsample_tap(cell_t pixel, cell_t size, cell_t cells) {
  const double position = double((2 * pixel + 1) * cells - size) / double(2 * size);
  return tap_at(clamp(position, 0.0, double(cells - 1)), cells);
}

// A weighted sum of `count` <= 4 coarse cells along one axis.
struct Stencil {
  int count;
  cell_t cell[4];
  double share[4];
};

// A blend of two fine pixels, each itself a blend of two coarse cells. Neighbouring pixels mostly share their cells:
// those are merged, since each one costs a read-modify-write where stencils are accumulated.
CGC_HD inline Stencil blend(const Tap& low, double low_share, const Tap& high, double high_share) {
  Stencil stencil{2, {low.low, low.high, high.low, high.high}, {low_share * (1 - low.share), low_share * low.share}};
  const double first = high_share * (1 - high.share), second = high_share * high.share;
  if (high.low == low.low) {
    stencil.share[0] += first;
    stencil.share[1] += second;
  } else if (high.low == low.high) {
    stencil.count = 3;
    stencil.share[1] += first;
    stencil.cell[2] = high.high;
    stencil.share[2] = second;
  } else {
    stencil.count = 4;
    stencil.share[2] = first;
    stencil.share[3] = second;
  }
  return stencil;
}

// Source position of an augmented pixel under an inverse homography [3, 3]; false where nothing is seen.
CGC_HD inline bool warp_source(const double* inverse, cell_t x, cell_t y, double& source_x, double& source_y) {
  const double px = double(x), py = double(y);
  const double depth = inverse[6] * px + inverse[7] * py + inverse[8];
  source_x = (inverse[0] * px + inverse[1] * py + inverse[2]) / depth;
  source_y = (inverse[3] * px + inverse[4] * py + inverse[5]) / depth;
  return depth > 0;
}

// Stencil of a source position on the fine axis, zero outside; false if no fine pixel is touched (NaN included).
// upsample(pixel) is the pixel's row of U.
template <class F>
CGC_HD inline bool warp_stencil(double position, cell_t size, F&& upsample, Stencil& stencil) {
  if (!(position > -1.0 && position < double(size))) return false;
  const double floor = std::floor(position);
  const double share = position - floor;
  const cell_t low = cell_t(floor);
  const bool has_low = low >= 0, has_high = low + 1 < size;
  stencil = blend(upsample(has_low ? low : 0), has_low ? 1 - share : 0.0, upsample(has_high ? low + 1 : size - 1),
                  has_high ? share : 0.0);
  return true;
}

}  // namespace cgc::CGC_ISA
