// What every kernel header needs. The including translation unit defines CGC_ISA, the namespace of its instruction set:
// functions of two instruction sets must never share a symbol, or the linker would keep only one of them.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define CGC_HD __host__ __device__
#else
#define CGC_HD
#endif

namespace cgc::CGC_ISA {

using index_t = std::int64_t;

template <class T>
CGC_HD constexpr T minimum(T a, T b) {
  return b < a ? b : a;
}

template <class T>
CGC_HD constexpr T maximum(T a, T b) {
  return a < b ? b : a;
}

template <class T>
CGC_HD inline T clamp(T value, T low, T high) {
  return minimum(maximum(value, low), high);
}

template <class T>
CGC_HD inline T round_up(T count, T multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

}  // namespace cgc::CGC_ISA
