// bfloat16 and float16 as storage types: converted to float on load, rounded to nearest even on store. Branch-free, so
// that loops over them vectorise.
#pragma once

#include <cstring>

#include "../common/platform.h"

namespace cgc::CGC_ISA {

struct bfloat16 {
  std::uint16_t bits;
};

struct float16 {
  std::uint16_t bits;
};

template <class T>
inline constexpr bool is_bfloat16 = false;
template <>
inline constexpr bool is_bfloat16<bfloat16> = true;

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(bfloat16 x) { return bit_cast<float>(std::uint32_t(x.bits) << 16); }

inline float load(float16 x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = std::uint32_t(x.bits & 0x7fffu) << 13;
  const float finite = bit_cast<float>(magnitude) * 0x1p112f;  // rebias; exact, subnormals included
  const std::uint32_t special = magnitude | 0x7f800000u;
  const std::uint32_t bits = magnitude >= (0x7c00u << 13) ? special : bit_cast<std::uint32_t>(finite);
  return bit_cast<float>(bits | sign);
}

template <class T, class Acc>
inline T store(Acc x) {
  if constexpr (sizeof(T) >= 4) {
    return T(x);
  } else {
    const std::uint32_t bits = bit_cast<std::uint32_t>(float(x));
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    const bool nan = magnitude > 0x7f800000u;
    T result;
    if constexpr (is_bfloat16<T>) {
      const std::uint32_t rounded = (magnitude + 0x7fffu + ((magnitude >> 16) & 1u)) >> 16;
      result.bits = std::uint16_t(sign | (nan ? 0x7fc0u : rounded));
    } else {
      const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
      // Adding 0.5 puts the last bit of a float16 subnormal at the last bit of the float: the addition rounds.
      const std::uint32_t subnormal = bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
      const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
      const std::uint32_t large = nan ? 0x7e00u : 0x7c00u;
      result.bits = std::uint16_t(sign | (magnitude >= 0x477ff000u ? large : finite));
    }
    return result;
  }
}

}  // namespace cgc::CGC_ISA
