// Blocks and their threads: launching, barriers, deadlocks.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>

#include "internal.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {

Config config;
const Launch* launched;
Block* block;
Fiber* fiber;
std::uint32_t era, launch_number;

namespace {

constexpr unsigned largest_block = 1024;
constexpr std::size_t largest_shared = 99 * 1024;  // what a block may ask for on every device since 8.0

// memcpy and memset are AddressSanitizer's where it is loaded, and refuse red zones.
void copy(char* target, const char* source, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) static_cast<volatile char*>(target)[i] = source[i];
}

std::size_t shared_bytes() { return std::size_t(launched->image_end - launched->shared_begin); }

void run_thread() {
  Context::entered();
  launched->body(launched->arguments);
  fiber->state = State::done;
  --block->live;
  Warp& warp = *fiber->warp;
  warp.live &= ~(1u << (fiber->rank & 31));
  complete_warp_op(*block, warp);
  fiber->context.leave(true);
  std::abort();
}

void resume(Fiber& next) {
  fiber = &next;
  threadIdx = next.index;
  next.context.enter();
  fiber = nullptr;
}

// Between rounds every live thread waits: for a barrier that all have reached, or for ever.
void release_barrier(Block& waiting) {
  int true_predicates = 0;
  const Fiber* first = nullptr;
  for (const Fiber& each : waiting.fibers) {
    if (each.state != State::at_barrier) continue;
    if (first == nullptr) first = &each;
    if (each.barrier != first->barrier) fail(Error::misuse, "threads wait at different kinds of __syncthreads");
    true_predicates += each.predicate != 0;
  }
  for (Fiber& each : waiting.fibers) {
    if (each.state != State::at_barrier) continue;
    if (each.barrier == Barrier::count) each.result = true_predicates;
    if (each.barrier == Barrier::all) each.result = true_predicates == waiting.at_barrier;
    if (each.barrier == Barrier::any) each.result = true_predicates > 0;
    waiting.wake(each);
  }
  waiting.at_barrier = 0;
  ++waiting.epoch;
  count_requests(waiting);
}

[[noreturn]] void report_deadlock(const Block& stuck) {
  int in[5] = {};
  for (const Fiber& each : stuck.fibers) ++in[int(each.state)];
  fail(Error::deadlock,
       "deadlock in block %u: threads at __syncthreads %d, at a warp operation %d, at grid.sync %d, returned %d",
       stuck.rank, in[int(State::at_barrier)], in[int(State::at_warp_op)], in[int(State::at_grid_barrier)],
       in[int(State::done)]);
  throw Deadlock{};
}

std::vector<std::unique_ptr<Block>> blocks;  // kept for the next launch, with their stacks

Block& resident(std::size_t i) {
  while (blocks.size() <= i) blocks.emplace_back(new Block);
  return *blocks[i];
}

void run_in_turn(const Launch& launch, const std::vector<unsigned>& order) {
  for (const unsigned rank : order) {
    Block& only = resident(0);
    only.start(launch, rank);
    if (!only.step()) {
      fail(Error::misuse, "grid.sync() in a launch that is not cooperative");
      throw Deadlock{};
    }
    only.finish();
  }
}

// Runs a block of several, with its own static shared memory in place.
bool step_among_others(Block& mine) {
  copy(launched->shared_begin, mine.image.get(), shared_bytes());
  const bool done = mine.step();
  copy(mine.image.get(), launched->shared_begin, shared_bytes());
  return done;
}

void run_together(const Launch& launch, std::vector<unsigned> order, std::mt19937& random) {
  for (const unsigned rank : order) {
    Block& mine = resident(rank);
    mine.start(launch, rank);
    mine.image.reset(new char[shared_bytes()]);
    copy(mine.image.get(), launch.shared_begin, shared_bytes());
  }
  for (;;) {
    unsigned done = 0;
    for (const unsigned rank : order) done += step_among_others(resident(rank));
    if (done == order.size()) break;
    if (done > 0) {
      fail(Error::deadlock, "deadlock: %zu blocks at grid.sync, %u returned", order.size() - done, done);
      throw Deadlock{};
    }
    ++era;
    for (const unsigned rank : order) resident(rank).release_grid_barrier();
    if (config.seed) std::shuffle(order.begin(), order.end(), random);
  }
  for (const unsigned rank : order) resident(rank).finish();
}

Outcome acceptable(const Launch& launch) {
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  const bool valid = threads >= 1 && threads <= largest_block && launch.grid.x * launch.grid.y * launch.grid.z >= 1;
  if (!valid) fail(Error::misuse, "launch of blocks of %u threads, or of no block", threads);
  const bool fits = launch.dynamic_bytes <= largest_shared;
  if (!fits) fail(Error::misuse, "launch of blocks with %zu bytes of shared memory", launch.dynamic_bytes);
  if (!valid || !fits) return given_up;
  if (!launch.cooperative) return ended;
  if (!config.cooperative) return cooperative_not_supported;
  const unsigned blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  return blocks > unsigned(config.resident_blocks) ? cooperative_too_large : ended;
}

}  // namespace

Block::~Block() {
  if (stacks) munmap(stacks, stacks_bytes);
}

void Block::wake(Fiber& waiting) {
  waiting.state = State::ready;
  next.push_back(&waiting);
}

void Block::start(const Launch& launch, unsigned number) {
  const dim3 size = launch.block;
  const unsigned threads = size.x * size.y * size.z;
  rank = number;
  index = make_uint3(rank % launch.grid.x, rank / launch.grid.x % launch.grid.y, rank / launch.grid.x / launch.grid.y);
  live = int(threads);
  at_barrier = at_grid_barrier = 0;
  epoch = 0;
  ready.clear();
  next.clear();
  random.seed(config.seed * 7919u + rank);
  if (stacks_bytes < threads * config.stack || stack_bytes != config.stack) {
    if (stacks) munmap(stacks, stacks_bytes);
    stack_bytes = config.stack;
    stacks_bytes = threads * stack_bytes;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, stacks_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) std::perror("simt: stacks"), std::abort();
    stacks = static_cast<char*>(memory);
  }
  forget_stacks(stacks, stacks_bytes);
  dynamic_bytes = launch.dynamic_bytes;
  dynamic.reset(new char[dynamic_bytes]);
  std::memset(dynamic.get(), 0xff, dynamic_bytes);
  dynamic_shadow.reset(dynamic_bytes, 1);
  static_shadow.reset(shared_bytes(), 1);
  for (std::size_t i = 0; i < shared_bytes(); ++i) static_cast<volatile char*>(launch.shared_begin)[i] = char(0xff);
  warps = std::vector<Warp>((threads + 31) / 32);
  fibers.resize(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& each = fibers[i];
    each.rank = i;
    each.index = make_uint3(i % size.x, i / size.x % size.y, i / size.x / size.y);
    each.warp = &warps[i / 32];
    each.warp->first = i / 32 * 32;
    each.warp->live |= 1u << (i & 31);
    each.warp_epoch = 0;
    each.context.prepare(stacks + i * stack_bytes, stack_bytes, run_thread);
    wake(each);
  }
}

bool Block::step() {
  block = this;
  blockIdx = index;
  for (;;) {
    while (!next.empty()) {
      ready.swap(next);
      next.clear();
      if (config.seed) std::shuffle(ready.begin(), ready.end(), random);
      for (Fiber* each : ready) resume(*each);
    }
    if (live == 0) return true;
    if (at_grid_barrier == live) return false;
    if (at_barrier != live) report_deadlock(*this);
    release_barrier(*this);
  }
}

void Block::release_grid_barrier() {
  for (Fiber& each : fibers) {
    if (each.state == State::at_grid_barrier) wake(each);
  }
  at_grid_barrier = 0;
  ++epoch;
  count_requests(*this);
}

void Block::finish() {
  count_requests(*this);
  for (const Fiber& each : fibers) {
    if (each.context.overflowed()) fail(Error::misuse, "the stack of thread %u overflowed", each.rank);
  }
}

Outcome run(const Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (const Outcome refusal = acceptable(launch)) return refusal;
  launched = &launch;
  gridDim = launch.grid;
  blockDim = launch.block;
  ++era;
  ++launch_number;
  std::vector<char> host_data(shared_bytes());  // the launcher may keep statics of its own there
  copy(host_data.data(), launch.shared_begin, shared_bytes());
  std::vector<unsigned> order(launch.grid.x * launch.grid.y * launch.grid.z);
  std::iota(order.begin(), order.end(), 0u);
  std::mt19937 random(config.seed);
  if (config.seed) std::shuffle(order.begin(), order.end(), random);
  Outcome outcome = ended;
  try {
    launch.cooperative ? run_together(launch, order, random) : run_in_turn(launch, order);
  } catch (const Deadlock&) {
    outcome = given_up;  // the fibers are abandoned where they wait
  }
  copy(launch.shared_begin, host_data.data(), shared_bytes());
  launched = nullptr;
  block = nullptr;
  return outcome;
}

void switch_away() { fiber->context.leave(false); }

int block_barrier(Barrier kind, int predicate) {
  fiber->state = State::at_barrier;
  fiber->barrier = kind;
  fiber->predicate = predicate;
  ++block->at_barrier;
  switch_away();
  return fiber->result;
}

void grid_barrier() {
  fiber->state = State::at_grid_barrier;
  ++block->at_grid_barrier;
  switch_away();
}

unsigned lane() { return fiber->rank & 31; }
unsigned live_lanes() { return fiber->warp->live; }
void* dynamic_shared() { return block->dynamic.get(); }

}  // namespace simt
