// Vectors of numbers, as wide as the instruction set has them, by the extension of GCC and Clang.
#pragma once

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

// Calls body(i, count) for every vector of [0, total): `count` numbers from i on, a Constant where they fill it, as all
// do but the last. What it takes by value stays in registers.
template <class T, class F>
[[gnu::always_inline]] inline void each_vector(index_t total, F body) {
  constexpr Constant<Vector<T>::lanes> whole;
  index_t i = 0;
  for (; i + whole <= total; i += whole) body(i, whole);
  if (i < total) body(i, total - i);
}

// Sums of neighbours: of a, then of b.
template <class V, int... I>
V pair_sums(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, 2 * I...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
#else
  using Places = decltype(a < b);
  return __builtin_shuffle(a, b, Places{2 * I...}) + __builtin_shuffle(a, b, Places{(2 * I + 1)...});
#endif
}

// values[places[0]], values[places[1]], ...
template <class V, class Places>
V permuted(V values, Places places) {
#if defined(__clang__)
  return __builtin_shufflevector(values, places);
#else
  return __builtin_shuffle(values, places);
#endif
}

// The sum of each of as many vectors as they have lanes; overwrites them.
template <class T>
typename Vector<T>::type sums_of(typename Vector<T>::type* vectors) {
  constexpr int lanes = int(Vector<T>::lanes);
  for (int count = lanes / 2; count > 0; count /= 2) {
    for (int i = 0; i < count; ++i) {
      vectors[i] = pair_sums(vectors[2 * i], vectors[2 * i + 1], std::make_integer_sequence<int, lanes>());
    }
  }
  return vectors[0];
}

}  // namespace cgc::CGC_ISA
