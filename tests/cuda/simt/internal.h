// The state of the emulated device. One kernel runs at a time, on one thread of the host: nothing here is atomic.
#pragma once

#include <vector_functions.h>
#include <vector_types.h>

#include <cstdint>
#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

#include "fiber.h"
#include "order.h"
#include "races.h"
#include "runtime.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace simt {

enum class State { ready, at_barrier, at_warp_op, at_wait, done };

struct Tensor;

// The n-th execution of one instruction by the lanes of a warp since a barrier, where all of them meet again: what the
// hardware sends to memory together.
struct Request {
  Tensor* tensor = nullptr;
  unsigned lanes = 0;
  std::uint64_t requested = 0;
  std::vector<std::pair<std::uintptr_t, std::uint32_t>> sectors;  // address / 32, mask of its bytes

  void add(std::uintptr_t sector, std::uint32_t mask);
};

struct CallSite {
  unsigned executed[32] = {};
  std::vector<Request> requests;
};

// What a lane brings to a warp operation, and takes from it.
struct Lane {
  WarpOp op;
  unsigned mask, ballot;
  int argument, width, bytes;
  alignas(16) char value[48], result[48];
};

struct Warp {
  Lane lanes[32];
  unsigned first;                                        // its first thread
  unsigned live = 0, waiting = 0;                        // lanes that have not returned; lanes at a warp operation
  unsigned epoch = 0;                                    // counts __syncwarp
  std::unordered_map<std::uint64_t, CallSite> sites[2];  // loads, stores; by tensor and call site
};

struct Fiber {
  Context context;
  State state;
  uint3 index;
  unsigned rank, warp_epoch;
  Warp* warp;
  bool waited;  // for the predecessor
  Barrier barrier;
  int predicate, result;
};

struct Block {
  uint3 index;
  unsigned rank;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Fiber*> ready, next;  // to run in this round, in the next one
  int live, at_barrier, at_wait;
  bool waited, may_pass;                   // a thread has waited for the predecessor; that has ended
  unsigned epoch;                          // counts barriers
  std::unique_ptr<char[]> dynamic, image;  // dynamic shared memory; static shared memory while another block runs
  std::size_t dynamic_bytes = 0;
  Shadow static_shadow, dynamic_shadow;
  char* stacks = nullptr;
  std::size_t stack_bytes = 0, stacks_bytes = 0;
  std::mt19937 random;

  ~Block();
  void start(const Launch& launch, unsigned rank);
  bool step();  // until all threads have returned (true) or wait for the predecessor (false)
  void pass();  // the predecessor has ended
  void finish();
  void wake(Fiber& fiber);
};

extern const Launch* launched;  // null between launches
extern Block* block;            // the running one
extern Fiber* fiber;
extern std::uint32_t launch_number;
extern const void* launch_site;  // where the host launches

void switch_away();                               // of the running fiber; its state says what it waits for
void complete_warp_op(Block& block, Warp& warp);  // lets lanes go that have all arrived
void multiply(Warp& warp, WarpOp op);             // an mma by all lanes, from their values to their results
void count_requests(Block& block);                // adds what the block's warps sent to memory to the tensors' counts
void forget_launches();
struct Deadlock {};

enum class Error { out_of_bounds, race, uninitialised, warp_op, deadlock, misuse, dependence, count };
extern const void* running_site;  // of what is being checked, if it is known
// Counts an error of the running thread; the first ones of each kind are printed and kept.
__attribute__((format(printf, 2, 3))) void fail(Error kind, const char* format, ...);

}  // namespace simt
