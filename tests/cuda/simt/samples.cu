// Launches the sample kernels, through ctypes.
#include "samples.cuh"

#include "samples_mma.cuh"
#include "samples_order.cuh"

using namespace samples;

#define EXPORT extern "C" __attribute__((visibility("default"))) int

EXPORT launch_block_sum(const float* x, float* out, int count, int blocks) {
  return simt::launch(false, block_sum, blocks, 256, 0, 0, x, out, count);
}
EXPORT launch_normalise_rows(const __nv_bfloat16* x, __nv_bfloat16* y, int rows, int columns) {
  return simt::launch(false, (normalise_rows<128>), rows, 128, 4 * sizeof(float), 0, x, y, columns);
}
// streams: of the two launches.
EXPORT launch_shares_in_sequence(const float* x, float* partial, float* y, int count, int blocks, void* first_stream,
                                 void* second_stream) {
#ifdef FAULT_SEQUENCE
  const int early = simt::launch(false, shares_second, blocks, 64, 0, second_stream, x, partial, y, count);
  return early + simt::launch(false, shares_first, blocks, 64, 0, first_stream, x, partial, count);
#else
  const int first = simt::launch(false, shares_first, blocks, 64, 0, first_stream, x, partial, count);
  return first + simt::launch(false, shares_second, blocks, 64, 0, second_stream, x, partial, y, count);
#endif
}
EXPORT launch_histogram(const int* values, int* bins, int count) {
  return simt::launch(false, histogram, (count + 127) / 128, 128, 0, 0, values, bins, count);
}
EXPORT launch_reverse_warps(const int* x, int* y) { return simt::launch(false, reverse_warps, 1, 64, 0, 0, x, y); }
EXPORT launch_columns(const float* x, float* y, int rounds) {
  return simt::launch(false, columns, 1, 32, 0, 0, x, y, rounds);
}
EXPORT launch_gather(const float* x, float* y, int count, int stride) {
  return simt::launch(false, gather, (count + 63) / 64, 64, 0, 0, x, y, count, stride);
}
EXPORT launch_twice_float16(const __half* x, __half* y, int count) {
  return simt::launch(false, twice_half, 1, count, 0, 0, x, y);
}
EXPORT launch_twice_bfloat16(const __nv_bfloat16* x, __nv_bfloat16* y, int count) {
  return simt::launch(false, twice_bfloat16, 1, count, 0, 0, x, y);
}
EXPORT launch_sum_by_last(const float* x, float* partial, unsigned* counter, float* out, int count, int blocks,
                          int threads) {
  const int first = simt::launch(false, set_to_zero, 1, 2, 0, 0, counter);
  return first + simt::launch(true, sum_by_last, blocks, threads, 0, 0, x, partial, counter, out, count);
}
EXPORT launch_chain(float* x, float* work, float* y, int count, bool first_depends) {
  const int blocks = (count + 63) / 64;
  void* const own = reinterpret_cast<void*>(1);  // a stream
  const int first = simt::launch(first_depends, chain_first, blocks, 64, 0, own, x, work, count);
  const int second = simt::launch(true, chain_second, blocks, 64, 0, own, x, work, count);
  return first + second + simt::launch(true, chain_third, blocks, 64, 0, own, work, y, count);
}
EXPORT launch_multiply(const float* a, const float* b, float* c, int tiles, int depth, bool split) {
  return simt::launch(false, (split ? multiply<true> : multiply<false>), tiles / 2, 64, 0, 0, a, b, c, depth);
}
EXPORT launch_multiply_double(const double* a, const double* b, double* c, int depth) {
  return simt::launch(false, multiply_double, 1, 32, 0, 0, a, b, c, depth);
}
EXPORT launch_multiply_by_half(double* c) { return simt::launch(false, multiply_by_half, 1, 32, 0, 0, c); }
EXPORT launch_copy_stream(const uint4* x, uint4* y, int count) {
  return simt::launch(false, copy_stream, (count + 63) / 64, 64, 0, 0, x, y, count);
}
EXPORT launch_warp_operations(int* out) { return simt::launch(false, warp_operations, 1, 64, 0, 0, out); }
EXPORT launch_stuck_at_barrier(int threads) { return simt::launch(false, stuck_at_barrier, 1, 64, 0, 0, threads); }
EXPORT launch_with_shared_memory(int* out, int bytes) {
  return simt::launch(false, reverse_warps, 1, 64, bytes, 0, out, out);
}
EXPORT launch_bad_shuffle(int* out) { return simt::launch(false, bad_shuffle, 1, 32, 0, 0, out); }
