// exp that vectorises: plain arithmetic, no table, no branch.
#pragma once

#include <cstring>

#include "../common/platform.h"

namespace cgc::CGC_ISA {

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Bits = std::uint32_t;
  static constexpr int degree = 7, mantissa = 23;
  static constexpr float lowest = -87.0f, shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};

template <>
struct ExpConstants<double> {
  using Bits = std::uint64_t;
  static constexpr int degree = 13, mantissa = 52;
  static constexpr double lowest = -708.0, shifter = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
};

// exp(x) for x <= 1, within a few units in the last place; below `lowest`, where it is 0 for every purpose here, the
// smallest normal magnitude. NaN stays NaN.
template <class T>
inline T exp_nonpositive(T x) {
  using C = ExpConstants<T>;
  x = x < C::lowest ? C::lowest : x;
  const T shifted = x * T(1.4426950408889634) + C::shifter;
  const T whole = shifted - C::shifter;
  const T rest = (x - whole * C::ln2_high) - whole * C::ln2_low;  // |rest| <= ln(2) / 2
  T series = 1;
  for (int k = C::degree; k >= 1; --k) series = 1 + series * rest / T(k);
  typename C::Bits bits, bias;
  std::memcpy(&bits, &shifted, sizeof(T));
  std::memcpy(&bias, &C::shifter, sizeof(T));
  bits = (bits - bias + ((typename C::Bits(1) << (sizeof(T) * 8 - 2 - C::mantissa)) - 1)) << C::mantissa;
  T power;
  std::memcpy(&power, &bits, sizeof(T));
  return series * power;
}

}  // namespace cgc::CGC_ISA
