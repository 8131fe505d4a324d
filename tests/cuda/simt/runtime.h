// What emulated kernels ask of the runtime. Compiled into the kernels' library; runtime: scheduler, warp, memory .cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

struct Config {
  unsigned seed = 0;   // 0: threads in order; else every round and the order of blocks is permuted
  double yield_p = 0;  // instrumented: probability of a context switch before a memory access
  std::size_t stack = std::size_t(64) << 10;  // bytes for each emulated thread
  bool dependent = true;                      // whether dependent launches start before their predecessor has ended
};
extern Config config;

struct Launch {
  dim3 grid, block;
  std::size_t dynamic_bytes;
  bool dependent;
  std::uintptr_t stream;
  void (*body)(void*);  // one thread of the kernel
  void* arguments;
  std::size_t arguments_bytes;
  char *image_begin, *shared_begin, *image_end;  // the library; from shared_begin on, its zero-initialised data

  std::size_t shared_bytes() const { return std::size_t(image_end - shared_begin); }
};

// What a launch returns. given_up: a deadlock, or a launch that no device would take.
enum Outcome : int { ended = 0, given_up = 1 };

// Runs a kernel to its end. Launches are serialised.
Outcome run(const Launch& launch);

enum class Barrier { plain, count, all, any };
enum class WarpOp { shuffle_index, shuffle_up, shuffle_down, shuffle_xor, ballot, sync, mma_tf32, mma_f64 };

// A lane's fragments of d += a b, as PTX lays them out.
struct MmaTf32 {
  float d[4];
  unsigned a[4], b[2];
};
struct MmaF64 {
  double d[2], a, b;
};

int block_barrier(Barrier kind, int predicate);
void wait_for_predecessor();
void release_successor();
// Waits for the lanes of `mask`; a shuffle or an mma writes `out`, a ballot is returned.
unsigned warp_op(WarpOp op, unsigned mask, const void* in, void* out, int bytes, int argument, int width);
unsigned lane();
unsigned live_lanes();
void* dynamic_shared();

// The running thread draws a ticket: what it and its block did is seen by who draws from the same counter later.
void draw_ticket(const void* counter);
// read_only: by the path of the hardware that must not meet a write of the same launch.
enum class Path { plain, atomic, read_only };
// One access of the running thread, about to happen: may switch to another thread, then counts and checks it.
void access(const void* address, std::size_t bytes, bool write, Path path, void* call_site);

}  // namespace simt
