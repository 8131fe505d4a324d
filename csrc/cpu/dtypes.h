// bfloat16 and float16 as storage types: converted to float on load, rounded to nearest even on store; a vector at a
// time, without branches.
#pragma once

#include <cstring>
#include <type_traits>

#include "vectors.h"

namespace cgc::CGC_ISA {

struct bfloat16 {
  std::uint16_t bits;
};

struct float16 {
  std::uint16_t bits;
};

// As many floats as a vector has, and their bits.
using Floats = Vector<float>::type;
using Bits = Vector<std::uint32_t>::type;

// The same, loaded once: GCC would load it again for every use.
inline Bits in_register(Bits bits) {
#if defined(__x86_64__)
  __asm__("" : "+v"(bits));
#endif
  return bits;
}

// Of two numbers in 32 bits.
inline Floats lower(Bits bits, bfloat16) { return Floats(bits << 16); }
inline Floats upper(Bits bits, bfloat16) { return Floats(bits & 0xffff0000u); }

inline Floats lower(Bits bits, float16) {
  const Bits sign = (bits & 0x8000u) << 16, magnitude = (bits & 0x7fffu) << 13;
  const Bits finite = Bits(Floats(magnitude) * 0x1p112f);  // rebias; exact, subnormals included
  return Floats(sign | (magnitude >= (0x7c00u << 13) ? magnitude | 0x7f800000u : finite));
}

inline Floats upper(Bits bits, float16) { return lower(bits >> 16, float16{}); }

inline Bits narrowed(Floats x, bfloat16) {
  const Bits bits = Bits(x), rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return (x != x ? Bits{} + 0x7fc00000u : rounded) >> 16;
}

inline Bits narrowed(Floats x, float16) {
  const Bits bits = Bits(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const Bits normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 puts the last bit of a float16 subnormal at the last bit of the float: the addition rounds.
  const Bits subnormal = Bits(Floats(magnitude) + 0.5f) - 0x3f000000u;
  const Bits finite = magnitude < 0x38800000u ? subnormal : normal;
  const Bits large = x != x ? Bits{} + 0x7e00u : Bits{} + 0x7c00u;
  return sign | (magnitude >= 0x477ff000u ? large : finite);
}

// As many numbers as one vector holds of type T, in the type that computes with them: one vector, or two where that has
// twice the size, of the numbers at even places and of those at odd ones. To take them apart so and to put them
// together again needs no shuffles. T: of the features; gradients are of that type too, or of the one that computes.
template <class T>
struct Pack {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;
  using V = typename Vector<Acc>::type;
  static constexpr index_t size = sizeof(Acc) / sizeof(T), lanes = size * Vector<Acc>::lanes;

  V vectors[size];

  Pack& operator+=(const Pack& other) {
    for (index_t i = 0; i < size; ++i) vectors[i] += other.vectors[i];
    return *this;
  }

  V sum() const {
    V total = vectors[0];
    for (index_t i = 1; i < size; ++i) total += vectors[i];
    return total;
  }
};

template <class T>
Pack<T> operator*(Pack<T> a, const Pack<T>& b) {
  for (index_t i = 0; i < Pack<T>::size; ++i) a.vectors[i] *= b.vectors[i];
  return a;
}

// The same number everywhere.
template <class T>
Pack<T> pack_of(typename Pack<T>::Acc value) {
  Pack<T> pack = {};
  for (auto& vector : pack.vectors) vector = value - vector;  // zero keeps its sign
  return pack;
}

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the number at the even place is the lower half");

// The first `count` numbers of a pack, zeros behind them.
template <class T, class In, class Count = Constant<Pack<T>::lanes>>
Pack<T> load_pack(const In* from, Count count = {}) {
  using Acc = typename Pack<T>::Acc;
  const std::size_t bytes = std::size_t(count) * sizeof(In);
  if constexpr (sizeof(In) == sizeof(Acc)) {
    Pack<T> pack = {};
    std::memcpy(&pack, from, bytes);
    if constexpr (Pack<T>::size == 2) {
      const auto [even, odd] = unzipped(pack.vectors[0], pack.vectors[1], Lanes<Acc>());
      return {{even, odd}};
    } else {
      return pack;
    }
  } else {
    Bits bits = {};
    std::memcpy(&bits, from, bytes);
    bits = in_register(bits);
    return {{lower(bits, In{}), upper(bits, In{})}};
  }
}

template <class T, class Out, class Count = Constant<Pack<T>::lanes>>
void store_pack(Pack<T> pack, Out* to, Count count = {}) {
  using Acc = typename Pack<T>::Acc;
  const std::size_t bytes = std::size_t(count) * sizeof(Out);
  if constexpr (sizeof(Out) == sizeof(Acc)) {
    if constexpr (Pack<T>::size == 2) {
      const auto [low, high] = zipped(pack.vectors[0], pack.vectors[1], Lanes<Acc>());
      pack = {{low, high}};
    }
    std::memcpy(to, &pack, bytes);
  } else {
    const Bits bits = narrowed(pack.vectors[0], Out{}) | narrowed(pack.vectors[1], Out{}) << 16;
    std::memcpy(to, &bits, bytes);
  }
}

}  // namespace cgc::CGC_ISA
