// CUDA's device functions: barriers, warp operations, memory accesses and the mathematics that g++ lacks.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

// ---- Barriers.

inline void __syncthreads() { simt::block_barrier(simt::Barrier::plain, 0); }
inline int __syncthreads_count(int predicate) { return simt::block_barrier(simt::Barrier::count, predicate); }
inline int __syncthreads_and(int predicate) { return simt::block_barrier(simt::Barrier::all, predicate); }
inline int __syncthreads_or(int predicate) { return simt::block_barrier(simt::Barrier::any, predicate); }

// Memory is never weak here, so that a missing fence is not found.
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- Warp operations.

namespace simt {

template <class T>
T shuffle(WarpOp op, unsigned mask, T value, int argument, int width) {
  static_assert(sizeof(T) <= 16, "a shuffle exchanges at most 16 bytes");
  T result;
  warp_op(op, mask, &value, &result, sizeof(T), argument, width);
  return result;
}

}  // namespace simt

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  simt::warp_op(simt::WarpOp::sync, mask, nullptr, nullptr, 0, 0, warpSize);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return simt::warp_op(simt::WarpOp::ballot, mask, &predicate, nullptr, sizeof(int), 0, warpSize);
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
// The lanes that have not returned: real convergence is unknown here.
inline unsigned __activemask() { return simt::live_lanes(); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  return simt::shuffle(simt::WarpOp::shuffle_index, mask, value, source, width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  return simt::shuffle(simt::WarpOp::shuffle_up, mask, value, int(delta), width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  return simt::shuffle(simt::WarpOp::shuffle_down, mask, value, int(delta), width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize) {
  return simt::shuffle(simt::WarpOp::shuffle_xor, mask, value, lanes, width);
}

// ---- Memory. In the instrumented build a function that reports its own access is not instrumented, and not inlined,
// so that its return address tells call sites apart.

#ifdef __SANITIZE_THREAD__
#define SIMT_UNSEEN __attribute__((no_sanitize("thread")))
#define SIMT_ACCESSOR __attribute__((noinline)) SIMT_UNSEEN
#define SIMT_ACCESS(address, bytes, write, path) \
  simt::access(address, bytes, write, simt::Path::path, __builtin_return_address(0))
#else
#define SIMT_UNSEEN
#define SIMT_ACCESSOR
#define SIMT_ACCESS(address, bytes, write, path)
#endif

namespace simt {

template <class T>
SIMT_ACCESSOR T gld(const T* source) {
  SIMT_ACCESS(source, sizeof(T), false, plain);
  return *source;
}

template <class T>
SIMT_ACCESSOR void gst(T* target, const T& value) {
  SIMT_ACCESS(target, sizeof(T), true, plain);
  *target = value;
}

template <class T>
SIMT_ACCESSOR T gld_stream(const T* source) {
  SIMT_ACCESS(source, sizeof(T), false, read_only);
  return *source;
}

template <class T>
SIMT_ACCESSOR T take_ticket(T* counter) {
  static_assert(std::is_same<T, unsigned>::value, "a counter of tickets is unsigned");
  SIMT_ACCESS(counter, sizeof(T), true, atomic);
  draw_ticket(counter);
  return (*counter)++;
}

SIMT_UNSEEN inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  MmaTf32 lane{{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  warp_op(WarpOp::mma_tf32, 0xffffffffu, &lane, &lane, sizeof(lane), 0, warpSize);
  for (int i = 0; i < 4; ++i) d[i] = lane.d[i];
}

SIMT_UNSEEN inline void mma_f64(double (&d)[2], double a, double b) {
  MmaF64 lane{{d[0], d[1]}, a, b};
  warp_op(WarpOp::mma_f64, 0xffffffffu, &lane, &lane, sizeof(lane), 0, warpSize);
  for (int i = 0; i < 2; ++i) d[i] = lane.d[i];
}

}  // namespace simt

template <class T>
T __ldg(const T* source) {
  return simt::gld_stream(source);
}
template <class T>
T __ldcs(const T* source) {
  return simt::gld(source);
}
template <class T>
void __stcs(T* target, T value) {
  simt::gst(target, value);
}

template <class T>
SIMT_ACCESSOR T atomicAdd(T* target, T value) {
  SIMT_ACCESS(target, sizeof(T), true, atomic);
  const T old = *target;
  *target = old + value;
  return old;
}
template <class T>
SIMT_ACCESSOR T atomicMax(T* target, T value) {
  SIMT_ACCESS(target, sizeof(T), true, atomic);
  const T old = *target;
  if (value > old) *target = value;
  return old;
}
template <class T>
SIMT_ACCESSOR T atomicExch(T* target, T value) {
  SIMT_ACCESS(target, sizeof(T), true, atomic);
  const T old = *target;
  *target = value;
  return old;
}
template <class T>
SIMT_ACCESSOR T atomicCAS(T* target, T expected, T value) {
  SIMT_ACCESS(target, sizeof(T), true, atomic);
  const T old = *target;
  if (old == expected) *target = value;
  return old;
}

// ---- Mathematics. The fast variants are exact here, so that tolerances have to allow for those of the device.

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }

template <class T>
T max(T a, T b) {
  return a > b ? a : b;
}
template <class T>
T min(T a, T b) {
  return a < b ? a : b;
}

namespace simt {

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace simt

inline float __int_as_float(int x) { return simt::same_bits<float>(x); }
inline int __float_as_int(float x) { return simt::same_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return simt::same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return simt::same_bits<unsigned>(x); }
inline double __longlong_as_double(long long x) { return simt::same_bits<double>(x); }
inline long long __double_as_longlong(double x) { return simt::same_bits<long long>(x); }
