// One sample of stage resample in shared memory: its maps, the matrices of its axes, and its numbers.
#pragma once

#include "platform.cuh"

namespace cgc::CGC_ISA {

// Part of the shared memory: an offset, which takes half the registers of a pointer.
struct Span {
  __device__ __forceinline__ double& operator[](int i) const {
    SIMT_DYN_SHARED(double, memory);
    return memory[begin + i];
  }
  __device__ __forceinline__ Span operator+(int offset) const { return {begin + offset}; }
  int begin;
};

// One image axis and its matrices, each [cells, cells].
struct Axis {
  int size, cells;
  Span p, q, k, sums;  // U^T R U, (R U)^T (R U), U^T U, U^T 1
};

// Numbers of one sample in shared memory, behind those of block_sum: the sums s of both views, then what `factors`
// names.
constexpr int sample_numbers = 16;
enum Number { sum_original, sum_augmented, cross, seen_square, aug_square, aug_inner, seen_inner };
enum Factor { seen_scale, aug_scale, seen_share, aug_share, seen_radial, aug_radial, factors = 8 };

// Maps of one sample in shared memory, laid out anew by every function that wants them: see fresh(), [P]; the last
// three hold a number for every thread of the block.
struct ResampleShared {
  __device__ __forceinline__ double& number(int i) const { return scratch[block_warps + i]; }
  Axis y, x;
  Span original, augmented, image, work, out, table;
  double* scratch;  // numbers of warps, then of the sample
  int table_size;
};

CGC_HD inline int axis_doubles(int cells) { return 3 * cells * cells + cells; }
CGC_HD inline int slots(int positions) { return maximum(positions, block_threads); }

// Doubles of shared memory without the table.
CGC_HD inline int resample_doubles(int height, int width) {
  const int positions = height * width;
  return axis_doubles(height) + axis_doubles(width) + 2 * positions + 3 * slots(positions) + block_warps +
         sample_numbers;
}

// Doubles of the table that one pixel takes: rows of U and R U of a crop, or two values along each axis of a warp.
CGC_HD inline int pixel_doubles(int height, int width) { return 2 * (height + width); }

__device__ __forceinline__ ResampleShared resample_shared(const Resample& call, int table) {
  SIMT_DYN_SHARED(double, memory);
  const int height = fresh(int(call.height)), width = fresh(int(call.width)), positions = height * width;
  const auto axis = [&](int size, int cells, int begin) {
    const Span p{begin};
    const int square = cells * cells;
    return Axis{size, cells, p, p + square, p + 2 * square, p + 3 * square};
  };
  const Span original{block_warps + sample_numbers}, augmented = original + positions, image = augmented + positions;
  const Span work = image + slots(positions), out = work + slots(positions), end = out + slots(positions);
  const Axis y = axis(fresh(int(call.size_h)), height, end.begin);
  const Axis x = axis(fresh(int(call.size_w)), width, end.begin + axis_doubles(height));
  return {y, x, original, augmented, image, work, out, x.p + axis_doubles(width), memory, table};
}

}  // namespace cgc::CGC_ISA
