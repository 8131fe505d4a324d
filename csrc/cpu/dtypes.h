// bfloat16 and float16 as storage types: converted to float on load, rounded to nearest even on store; a vector at a
// time, without branches.
#pragma once

#include <cstring>

#include "vectors.h"

namespace cgc::CGC_ISA {

struct bfloat16 {
  std::uint16_t bits;
};

struct float16 {
  std::uint16_t bits;
};

// As many floats as a vector has, their bits, and as many numbers of 16 bits.
using Floats = Vector<float>::type;
using Bits = Vector<std::uint32_t>::type;
typedef std::uint16_t Narrow __attribute__((vector_size(vector_bytes / 2), may_alias));

inline Floats widened(Narrow x, bfloat16) { return Floats(__builtin_convertvector(x, Bits) << 16); }

inline Floats widened(Narrow x, float16) {
  const Bits bits = __builtin_convertvector(x, Bits);
  const Bits sign = (bits & 0x8000u) << 16, magnitude = (bits & 0x7fffu) << 13;
  const Bits finite = Bits(Floats(magnitude) * 0x1p112f);  // rebias; exact, subnormals included
  return Floats(sign | (magnitude >= (0x7c00u << 13) ? magnitude | 0x7f800000u : finite));
}

inline Narrow narrowed(Floats x, bfloat16) {
  const Bits bits = Bits(x), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector(x != x ? Bits{} + 0x7fc0u : rounded, Narrow);
}

inline Narrow narrowed(Floats x, float16) {
  const Bits bits = Bits(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const Bits normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 puts the last bit of a float16 subnormal at the last bit of the float: the addition rounds.
  const Bits subnormal = Bits(Floats(magnitude) + 0.5f) - 0x3f000000u;
  const Bits finite = magnitude < 0x38800000u ? subnormal : normal;
  const Bits large = x != x ? Bits{} + 0x7e00u : Bits{} + 0x7c00u;
  return __builtin_convertvector(sign | (magnitude >= 0x477ff000u ? large : finite), Narrow);
}

// The first `count` numbers of a vector of Acc, zeros behind them.
template <class Acc, class T, class Count = Constant<Vector<Acc>::lanes>>
typename Vector<Acc>::type load(const T* from, Count count = {}) {
  if constexpr (sizeof(T) == sizeof(Acc)) {
    typename Vector<Acc>::type values = {};
    std::memcpy(&values, from, std::size_t(count) * sizeof(T));
    return values;
  } else {
    Narrow values = {};
    std::memcpy(&values, from, std::size_t(count) * sizeof(T));
    return widened(values, T{});
  }
}

template <class Acc, class T, class Count = Constant<Vector<Acc>::lanes>>
void store(typename Vector<Acc>::type values, T* to, Count count = {}) {
  if constexpr (sizeof(T) == sizeof(Acc)) {
    std::memcpy(to, &values, std::size_t(count) * sizeof(T));
  } else {
    const Narrow rounded = narrowed(values, T{});
    std::memcpy(to, &rounded, std::size_t(count) * sizeof(T));
  }
}

}  // namespace cgc::CGC_ISA
