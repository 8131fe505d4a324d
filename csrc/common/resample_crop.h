// Where the pixels of a crop take their values from, exactly: positions are multiples of 1 / (2 size), so integers
// (docs/mathematics.md, section 2).
#pragma once

#include "platform.h"
#include "resample_columns.h"

namespace cgc::CGC_ISA {

// One axis of the view, and what a sample's crop takes of it.
struct CropAxis {
  int size, cells;    // pixels of the view, cells of the map
  int start, length;  // of the crop, inside the view; length 0: no crop, R is zero
  bool flip;
};

// side: 0 for y, 1 for x, which alone may be flipped. A crop outside the view still reads inside it.
CGC_HD inline CropAxis crop_axis(const Resample& call, int side, index_t sample) {
  CropAxis axis{int(side == 0 ? call.size_h : call.size_w), int(side == 0 ? call.height : call.width), 0, 0, false};
  if (call.crops[crop_top].data == nullptr) return axis;
  axis.start = int(clamp(value_of(call.crops[crop_top + side], sample), index_t(0), index_t(axis.size - 1)));
  axis.length =
      int(clamp(value_of(call.crops[crop_height + side], sample), index_t(1), index_t(axis.size - axis.start)));
  axis.flip = side == 1 && value_of(call.crops[crop_flip], sample) != 0;
  return axis;
}

// Positions are multiples of 1 / (2 size), so that they are exact as integers: this is 2 size times the position of a
// pixel on the map's axis.
CGC_HD inline int upsampled_position(const CropAxis& axis, int pixel) {
  return clamp((2 * pixel + 1) * axis.cells - axis.size, 0, (axis.cells - 1) * 2 * axis.size);
}

// The share of a cell in a pixel: a hat of width 1 round the cell.
template <class Real>
CGC_HD inline Real hat(int position, int cell, int size, Real unit) {
  const int distance = position - cell * 2 * size;
  return maximum(Real(0), 1 - Real(distance < 0 ? -distance : distance) * unit);
}

// Where a pixel of the augmented view takes its value from: a blend of two neighbouring pixels' positions.
template <class Real>
struct CropSource {
  int low, high;  // as of upsampled_position
  Real share;     // of high

  CGC_HD CropSource(const CropAxis& axis, int pixel, Real unit) {
    const int from = axis.flip ? axis.size - 1 - pixel : pixel, twice = 2 * axis.size;
    const index_t most = index_t(axis.length - 1) * twice;
    const index_t position =
        clamp(index_t(2 * from + 1) * axis.length - axis.size, index_t(0), maximum(most, index_t(0)));
    int whole = int(float(position) * (1.0f / float(twice)));  // within 1 of the quotient
    int rest = int(position - index_t(whole) * twice);
    if (rest < 0) rest += twice, --whole;
    if (rest >= twice) rest -= twice, ++whole;
    share = Real(rest) * unit;
    low = upsampled_position(axis, axis.start + whole);
    high = upsampled_position(axis, axis.start + minimum(whole + 1, axis.length - 1));
  }

  CGC_HD Real hat(int cell, int size, Real unit) const {
    const Real at_low = CGC_ISA::hat(low, cell, size, unit);
    return at_low + share * (CGC_ISA::hat(high, cell, size, unit) - at_low);
  }
};

}  // namespace cgc::CGC_ISA
