// Vectors of numbers, as wide as the instruction set has them, by the extension of GCC and Clang.
#pragma once

#include <cstring>
#include <utility>

#include "../common/platform.h"

namespace cgc::CGC_ISA {

// The widest vector of this instruction set; wider ones would be taken apart through memory.
#if defined(__AVX512F__)
constexpr index_t vector_bytes = 64;
#elif defined(__AVX__)
constexpr index_t vector_bytes = 32;
#else
constexpr index_t vector_bytes = 16;
#endif

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(vector_bytes), may_alias));
  static constexpr index_t lanes = vector_bytes / index_t(sizeof(T));
};

template <index_t N>
struct Constant {
  constexpr operator index_t() const { return N; }
};

// Calls body(i, count) for every part of [0, total) of N numbers: `count` of them from i on, a Constant where they are
// N, as in all parts but the last. What it takes by value stays in registers.
template <index_t N, class F>
[[gnu::always_inline]] inline void each_part(index_t total, F body) {
  constexpr Constant<N> whole;
  index_t i = 0;
  for (; i + whole <= total; i += whole) body(i, whole);
  if (i < total) body(i, total - i);
}

// The first `count` numbers of a vector, zeros behind them.
template <class T, class Count = Constant<Vector<T>::lanes>>
typename Vector<T>::type load(const T* from, Count count = {}) {
  typename Vector<T>::type values = {};
  std::memcpy(&values, from, std::size_t(count) * sizeof(T));
  return values;
}

template <class T, class Count = Constant<Vector<T>::lanes>>
void store(typename Vector<T>::type values, T* to, Count count = {}) {
  std::memcpy(to, &values, std::size_t(count) * sizeof(T));
}

// a and b, of which I... are taken: those of a count from 0, those of b go on from there.
template <class V, int... I>
V shuffled(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  using Places = decltype(a < b);
  return __builtin_shuffle(a, b, Places{I...});
#endif
}

// Of [a, b] as one row: what stands at even places, and at odd ones.
template <class V, int... I>
std::pair<V, V> unzipped(V a, V b, std::integer_sequence<int, I...>) {
  return {shuffled(a, b, std::integer_sequence<int, 2 * I...>()),
          shuffled(a, b, std::integer_sequence<int, 2 * I + 1 ...>())};
}

// The other way round.
template <class V, int... I>
std::pair<V, V> zipped(V even, V odd, std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I);
  return {shuffled(even, odd, std::integer_sequence<int, (I / 2 + I % 2 * lanes)...>()),
          shuffled(even, odd, std::integer_sequence<int, (lanes / 2 + I / 2 + I % 2 * lanes)...>())};
}

template <class T>
using Lanes = std::make_integer_sequence<int, int(Vector<T>::lanes)>;

// The sum of each of as many vectors as they have lanes; overwrites them.
template <class T>
typename Vector<T>::type sums_of(typename Vector<T>::type* vectors) {
  constexpr int lanes = int(Vector<T>::lanes);
  for (int count = lanes / 2; count > 0; count /= 2) {
    for (int i = 0; i < count; ++i) {
      const auto [even, odd] = unzipped(vectors[2 * i], vectors[2 * i + 1], Lanes<T>());
      vectors[i] = even + odd;
    }
  }
  return vectors[0];
}

}  // namespace cgc::CGC_ISA
