// A block and its threads: barriers, the wait for the predecessor, deadlocks.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "internal.h"
#include "poison.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {

Block* block;
Fiber* fiber;

namespace {

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
  poison.show(next.waited);
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
  fail(Error::deadlock, "deadlock in block %u: threads at __syncthreads %d, at a warp operation %d, returned %d",
       stuck.rank, in[int(State::at_barrier)], in[int(State::at_warp_op)], in[int(State::done)]);
  throw Deadlock{};
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
  at_barrier = at_wait = 0;
  waited = may_pass = false;
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
  static_shadow.reset(launched->shared_bytes(), 1);
  for (std::size_t i = 0; i < launched->shared_bytes(); ++i)
    static_cast<volatile char*>(launch.shared_begin)[i] = char(0xff);
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
    each.waited = false;
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
      // Putting the poison in place and back costs time.
      if (waited && !poison.empty()) {
        std::stable_partition(ready.begin(), ready.end(), [](const Fiber* each) { return !each->waited; });
      }
      for (Fiber* each : ready) resume(*each);
    }
    if (live == 0) return true;
    if (at_barrier == live) {
      release_barrier(*this);
    } else if (at_wait > 0) {
      return false;
    } else {
      report_deadlock(*this);
    }
  }
}

void Block::pass() {
  may_pass = true;
  for (Fiber& each : fibers) {
    if (each.state != State::at_wait) continue;
    each.waited = true;
    wake(each);
  }
  at_wait = 0;
}

void Block::finish() {
  count_requests(*this);
  for (const Fiber& each : fibers) {
    if (each.context.overflowed()) fail(Error::misuse, "the stack of thread %u overflowed", each.rank);
  }
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

void wait_for_predecessor() {
  if (fiber->waited) return;
  block->waited = true;
  if (!order.dependent) {
    fiber->waited = true;
  } else if (block->may_pass) {
    fiber->waited = true;
    block->wake(*fiber);
    switch_away();
  } else {
    fiber->state = State::at_wait;
    ++block->at_wait;
    switch_away();
  }
}

void release_successor() { order.early |= !fiber->waited; }

unsigned lane() { return fiber->rank & 31; }
unsigned live_lanes() { return fiber->warp->live; }
void* dynamic_shared() { return block->dynamic.get(); }

}  // namespace simt
