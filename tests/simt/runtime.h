// What emulated kernels ask of the runtime. Compiled into the kernels' library; runtime: scheduler, warp, memory .cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

struct Config {
  unsigned seed = 0;   // 0: threads in order; else every round and the order of blocks is permuted
  double yield_p = 0;  // instrumented: probability of a context switch before a memory access
  std::size_t stack = std::size_t(64) << 10;  // bytes for each emulated thread
  int resident_blocks = 4;                    // of any kernel, which the device holds at once
  bool cooperative = true;                    // whether the device takes cooperative launches
};
extern Config config;

struct Launch {
  dim3 grid, block;
  std::size_t dynamic_bytes;
  bool cooperative;
  std::uintptr_t stream;
  void (*body)(void*);  // one thread of the kernel
  void* arguments;
  std::size_t arguments_bytes;
  char *image_begin, *shared_begin, *image_end;  // the library; from shared_begin on, its zero-initialised data
};

// What a launch returns. given_up: a deadlock, or a launch that no device would take.
enum Outcome : int { ended = 0, given_up = 1, cooperative_too_large = 2, cooperative_not_supported = 3 };

// Runs a kernel to its end. Launches are serialised.
Outcome run(const Launch& launch);

enum class Barrier { plain, count, all, any };
enum class WarpOp { shuffle_index, shuffle_up, shuffle_down, shuffle_xor, ballot, sync };

int block_barrier(Barrier kind, int predicate);
void grid_barrier();
// Waits for the lanes of `mask`; a shuffle writes `out`, a ballot is returned.
unsigned warp_op(WarpOp op, unsigned mask, const void* in, void* out, int bytes, int argument, int width);
unsigned lane();
unsigned live_lanes();
void* dynamic_shared();

// One access of the running thread, about to happen: may switch to another thread, then counts and checks it.
void access(const void* address, std::size_t bytes, bool write, bool atomic, void* call_site);

}  // namespace simt
