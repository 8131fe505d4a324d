// What every kernel of this folder needs: threads, storage types, vectors, sums, products of tiles, launches.
//
// Kernels take one structure by value and run in blocks of 256 threads. All shared memory is dynamic. Whatever a kernel
// reads or writes of its predecessor's comes after simt::wait_for_predecessor(); each calls it at its end at the
// latest, so that who waits for a kernel has waited for all before it.
#pragma once

#define CGC_ISA cuda

#include <simt.h>

#include <type_traits>

#include "../common/dispatch.h"
#include "../common/gradients.h"
#include "../common/loss.h"
#include "../common/platform.h"
#include "launch.h"

namespace cgc::CGC_ISA {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

constexpr int block_threads = 256, warp_threads = 32, block_warps = block_threads / warp_threads;
constexpr unsigned all_lanes = 0xffffffffu;

__device__ __forceinline__ int thread() { return int(threadIdx.x); }
__device__ __forceinline__ int lane() { return thread() % warp_threads; }
__device__ __forceinline__ int warp() { return thread() / warp_threads; }

CGC_HD inline int ceil_div(int count, int size) { return (count + size - 1) / size; }

// Division of numbers up to 2^20 by a size up to 1024, which takes one multiplication.
struct Divisor {
  Divisor() = default;
  explicit Divisor(int size) : size(unsigned(size)), reciprocal(0x7fffffffu / unsigned(size) + 1) {}
  __device__ __forceinline__ int quotient(int x) const {
    return int(std::uint64_t(2 * unsigned(x)) * reciprocal >> 32);
  }
  __device__ __forceinline__ int remainder(int x) const { return x - quotient(x) * int(size); }

  unsigned size, reciprocal;  // of 2^31, rounded up
};

// Elements before the i-th of rows of `size`; one multiplication.
CGC_HD inline index_t rows_before(unsigned i, int size) { return index_t(std::uint64_t(i) * unsigned(size)); }

// An element of a sample: a sample's bytes are fewer than 2^32, so that its address takes one addition.
template <class T>
__device__ __forceinline__ T* element(T* first, int i) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(first) + unsigned(i) * unsigned(sizeof(T)));
}

// visit(i) for every i in [0, count), dealt out to the threads of the block.
template <class F>
__device__ __forceinline__ void each(int count, F&& visit) {
#pragma unroll 1
  for (int i = thread(); i < count; i += block_threads) visit(i);
}

// visit(i) for every i in [0, count), known when compiled: what it indexes stays in registers.
template <int count, class F>
__device__ __forceinline__ void unrolled(F&& visit) {
#pragma unroll
  for (int i = 0; i < count; ++i) visit(i);
}

// ---- Storage types, computed with in float or double

template <class T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A number in double, by its bits: kernels of float32 have no use for the double unit. Subnormals become 0.
__device__ __forceinline__ double widened(double x) { return x; }
__device__ __forceinline__ double widened(float x) {
  const unsigned bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
  const unsigned bias = magnitude < 0x00800000u ? 0u : magnitude < 0x7f800000u ? 0x38000000u : 0x70000000u;
  const unsigned high = bias == 0u ? 0u : (magnitude >> 3) + bias, low = bias == 0u ? 0u : bits << 29;
  return __longlong_as_double((long long)(((unsigned long long)(high | (bits & 0x80000000u)) << 32) | low));
}

// V values that lie side by side, as words of 16 bytes: as values, the narrow ones would take a register each.
template <class T, int V>
struct alignas(16) Pack {
  unsigned word[V * sizeof(T) / 4];

  __device__ __forceinline__ acc_t<T> at(int k) const {
    if constexpr (sizeof(T) == 8) {
      return __longlong_as_double((long long)((unsigned long long)(word[2 * k + 1]) << 32 | word[2 * k]));
    } else if constexpr (sizeof(T) == 4) {
      return __uint_as_float(word[k]);
    } else {
      const unsigned upper = k % 2 == 0 ? word[k / 2] << 16 : word[k / 2] & 0xffff0000u;
      if constexpr (std::is_same_v<T, bfloat16>) return __uint_as_float(upper);
      return __half2float(__half(__half_raw{(unsigned short)(upper >> 16)}));
    }
  }

  // Rounded to nearest; the narrow types in pairs, which takes one instruction.
  __device__ __forceinline__ void set(const acc_t<T> (&x)[V]) {
    unrolled<int(sizeof(word) / 4)>([&](int i) {
      if constexpr (sizeof(T) >= 4) {
        word[i] = reinterpret_cast<const unsigned*>(x)[i];
      } else if constexpr (std::is_same_v<T, bfloat16>) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
        word[i] = reinterpret_cast<const unsigned&>(pair);
      } else {
        const __half2 pair = __floats2half2_rn(x[2 * i], x[2 * i + 1]);
        word[i] = reinterpret_cast<const unsigned&>(pair);
      }
    });
  }
};
template <class T>
struct Pack<T, 1> {
  T value;

  __device__ __forceinline__ acc_t<T> at(int) const { return acc_t<T>(value); }
};

// Of data that is read once.
template <int V, class T>
__device__ __forceinline__ Pack<T, V> read(const T* from) {
  if constexpr (V == 1) {
    return {simt::gld(from)};
  } else {
    Pack<T, V> pack;
    unrolled<int(sizeof(pack) / 16)>([&](int i) {
      reinterpret_cast<uint4*>(pack.word)[i] = simt::gld_stream(reinterpret_cast<const uint4*>(from) + i);
    });
    return pack;
  }
}

template <int V, class T>
__device__ __forceinline__ void write(T* to, const acc_t<T> (&x)[V]) {
  if constexpr (V == 1) {
    simt::gst(to, T(x[0]));
  } else {
    Pack<T, V> pack;
    pack.set(x);
    unrolled<int(sizeof(pack) / 16)>(
        [&](int i) { simt::gst(reinterpret_cast<uint4*>(to) + i, reinterpret_cast<const uint4*>(pack.word)[i]); });
  }
}

// ---- Sums in a fixed order

// Over groups of `width` lanes, a power of two; every lane gets it.
template <class T>
__device__ __forceinline__ T warp_sum(T value, int width = warp_threads) {
#pragma unroll
  for (int distance = warp_threads / 2; distance > 0; distance /= 2) {
    if (distance < width) value += __shfl_xor_sync(all_lanes, value, distance);
  }
  return value;
}

// Of eight or four numbers at once: lane l gets that of number l * count / 32. Lanes exchange halves of what they hold,
// so that 8 sums take 9 shuffles.
template <int count, class T>
__device__ __forceinline__ T warp_sums(T (&values)[count]) {
#pragma unroll
  for (int distance = warp_threads / 2, half = count / 2; distance > 0; distance /= 2, half /= 2) {
    const bool upper = (lane() & distance) != 0;
    if (half == 0) values[0] += __shfl_xor_sync(all_lanes, values[0], distance);
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const T sent = upper ? values[i] : values[i + half], kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(all_lanes, sent, distance);
    }
  }
  return values[0];
}

// Over the block, for every thread. scratch: shared, [warps, count]; not in use before the next barrier.
template <int count, class T>
__device__ __forceinline__ void block_sums(T (&values)[count], T* scratch) {
  unrolled<count>([&](int i) {
    values[i] = warp_sum(values[i]);
    if (lane() == 0) scratch[warp() * count + i] = values[i];
  });
  __syncthreads();
  unrolled<count>([&](int i) {
    values[i] = 0;
    unrolled<block_warps>([&](int w) { values[i] += scratch[w * count + i]; });
  });
}

// ---- Products of tiles, by a warp on tensor cores: c [16, 8] += a [16, 8] b [8, 8]
//
// Lane l holds rows r = l / 4 and r + 8, and with t = l % 4
//   a: (r, t), (r + 8, t), (r, t + 4), (r + 8, t + 4);  b: (t, r), (t + 4, r);
//   c: (r, 2 t), (r, 2 t + 1), (r + 8, 2 t), (r + 8, 2 t + 1).

__device__ __forceinline__ int fragment_row() { return lane() / 4; }
__device__ __forceinline__ int fragment_column() { return lane() % 4; }

// float32 as the sum of two tf32 numbers, of which the second has either sign, lest its lost bits add up; of their four
// products the smallest is left out. Of NaN at least the second is NaN.
__device__ __forceinline__ void mma(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  unsigned a_high[4], a_low[4], b_high[2], b_low[2];
  const auto split = [](float x, unsigned& high, unsigned& low) {
    high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
    low = __float_as_uint(x - __uint_as_float(high));
  };
  unrolled<4>([&](int i) { split(a[i], a_high[i], a_low[i]); });
  unrolled<2>([&](int i) { split(b[i], b_high[i], b_low[i]); });
  simt::mma_tf32(c, a_high, b_low);
  simt::mma_tf32(c, a_low, b_high);
  simt::mma_tf32(c, a_high, b_high);
}

__device__ __forceinline__ void mma(double (&c)[4], const double (&a)[4], const double (&b)[2]) {
  unrolled<2>([&](int rows) {
    double part[2] = {c[2 * rows], c[2 * rows + 1]};
    simt::mma_f64(part, a[rows], b[0]);
    simt::mma_f64(part, a[rows + 2], b[1]);
    c[2 * rows] = part[0], c[2 * rows + 1] = part[1];
  });
}

}  // namespace cgc::CGC_ISA

template <class Grid, class Call>
int cgc::Stream::start(void (*kernel)(Call), Grid grid, std::int64_t shared_bytes, const Call& call) {
  if (!launches_ || error_ != 0) return error_;
  error_ = simt::launch(started_, kernel, grid, CGC_ISA::block_threads, std::size_t(shared_bytes), stream_, call);
  started_ = true;
  return error_;
}
