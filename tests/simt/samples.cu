// Launches the sample kernels, through ctypes.
#include "samples.cuh"

using namespace samples;

#define EXPORT extern "C" __attribute__((visibility("default"))) int

EXPORT launch_block_sum(const float* x, float* out, int count, int blocks) {
  return SIMT_LAUNCH(block_sum, blocks, 256, 0, 0, x, out, count);
}
EXPORT launch_normalise_rows(const __nv_bfloat16* x, __nv_bfloat16* y, int rows, int columns) {
  return SIMT_LAUNCH((normalise_rows<128>), rows, 128, 4 * sizeof(float), 0, x, y, columns);
}
EXPORT launch_shares(const float* x, float* partial, float* y, int count, int blocks) {
  return SIMT_LAUNCH_COOP(shares, blocks, 64, 0, 0, x, partial, y, count);
}
// streams: of the two launches.
EXPORT launch_shares_in_sequence(const float* x, float* partial, float* y, int count, int blocks, long first_stream,
                                 long second_stream) {
#ifdef FAULT_SEQUENCE
  const int early = SIMT_LAUNCH(shares_second, blocks, 64, 0, second_stream, x, partial, y, count);
  return early + SIMT_LAUNCH(shares_first, blocks, 64, 0, first_stream, x, partial, count);
#else
  const int first = SIMT_LAUNCH(shares_first, blocks, 64, 0, first_stream, x, partial, count);
  return first + SIMT_LAUNCH(shares_second, blocks, 64, 0, second_stream, x, partial, y, count);
#endif
}
EXPORT launch_histogram(const int* values, int* bins, int count) {
  return SIMT_LAUNCH(histogram, (count + 127) / 128, 128, 0, 0, values, bins, count);
}
EXPORT launch_reverse_warps(const int* x, int* y) { return SIMT_LAUNCH(reverse_warps, 1, 64, 0, 0, x, y); }
EXPORT launch_columns(const float* x, float* y, int rounds) { return SIMT_LAUNCH(columns, 1, 32, 0, 0, x, y, rounds); }
EXPORT launch_gather(const float* x, float* y, int count, int stride) {
  return SIMT_LAUNCH(gather, (count + 63) / 64, 64, 0, 0, x, y, count, stride);
}
EXPORT launch_twice_float16(const __half* x, __half* y, int count) {
  return SIMT_LAUNCH(twice_half, 1, count, 0, 0, x, y);
}
EXPORT launch_twice_bfloat16(const __nv_bfloat16* x, __nv_bfloat16* y, int count) {
  return SIMT_LAUNCH(twice_bfloat16, 1, count, 0, 0, x, y);
}
EXPORT launch_warp_operations(int* out) { return SIMT_LAUNCH(warp_operations, 1, 64, 0, 0, out); }
EXPORT launch_stuck_at_barrier(int threads) { return SIMT_LAUNCH(stuck_at_barrier, 1, 64, 0, 0, threads); }
EXPORT launch_stuck_at_grid_barrier(int blocks) { return SIMT_LAUNCH_COOP(stuck_at_grid_barrier, 4, 32, 0, 0, blocks); }
EXPORT launch_grid_barrier_alone() { return SIMT_LAUNCH(stuck_at_grid_barrier, 4, 32, 0, 0, 4); }
EXPORT launch_with_shared_memory(int* out, int bytes) { return SIMT_LAUNCH(reverse_warps, 1, 64, bytes, 0, out, out); }
EXPORT launch_bad_shuffle(int* out) { return SIMT_LAUNCH(bad_shuffle, 1, 32, 0, 0, out); }
