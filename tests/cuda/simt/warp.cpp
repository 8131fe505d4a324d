// Warp operations: each lane waits until all live lanes of its mask are at the same operation.
#include <cstring>

#include "internal.h"

namespace simt {
namespace {

bool is_mma(WarpOp op) { return op == WarpOp::mma_tf32 || op == WarpOp::mma_f64; }
bool is_shuffle(WarpOp op) { return op != WarpOp::ballot && op != WarpOp::sync && !is_mma(op); }

// The lane that `lane` reads in a shuffle; itself where the source lies outside its part of the warp.
int source_lane(const Lane& at, int lane) {
  const int begin = lane & ~(at.width - 1), end = begin + at.width;
  int source = lane;
  if (at.op == WarpOp::shuffle_index) return begin + (at.argument & (at.width - 1));
  if (at.op == WarpOp::shuffle_up) source = lane - at.argument;
  if (at.op == WarpOp::shuffle_down) source = lane + at.argument;
  // A xor may read an earlier part of the warp, not a later one.
  if (at.op == WarpOp::shuffle_xor) return (lane ^ at.argument) < end ? lane ^ at.argument : lane;
  return source >= begin && source < end ? source : lane;
}

bool all_there(const Warp& warp, unsigned needed, const Lane& like) {
  if ((warp.waiting & needed) != needed) return false;
  for (int i = 0; i < 32; ++i) {
    if (needed >> i & 1 && (warp.lanes[i].mask != like.mask || warp.lanes[i].op != like.op)) return false;
  }
  return true;
}

unsigned vote(const Warp& warp, unsigned lanes) {
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) {
    int predicate = 0;
    if (lanes >> i & 1) std::memcpy(&predicate, warp.lanes[i].value, sizeof(predicate));
    ballot |= unsigned(predicate != 0) << i;
  }
  return ballot;
}

// All lanes of the warp have to be there; otherwise the result is NaN.
void multiply_together(Warp& warp, unsigned lanes, WarpOp op) {
  if (lanes == 0xffffffffu) return multiply(warp, op);
  fail(Error::warp_op, "mma by lanes 0x%x of a warp", lanes);
  for (Lane& each : warp.lanes) std::memset(each.result, 0xff, sizeof(each.result));
}

void exchange(Warp& warp, unsigned lanes) {
  for (int i = 0; i < 32; ++i) {
    if (!(lanes >> i & 1)) continue;
    Lane& each = warp.lanes[i];
    const int source = source_lane(each, i);
    if (lanes >> source & 1) {
      std::memcpy(each.result, warp.lanes[source].value, std::size_t(each.bytes));
    } else {
      fail(Error::warp_op, "lane %d shuffles from lane %d, which does not take part", i, source);
      std::memset(each.result, 0xff, sizeof(each.result));
    }
  }
}

}  // namespace

void complete_warp_op(Block& owner, Warp& warp) {
  unsigned unseen = warp.waiting;
  while (unseen) {
    const Lane& like = warp.lanes[__builtin_ctz(unseen)];
    const unsigned group = like.mask & warp.live;
    unseen &= ~group;
    if (!all_there(warp, group, like)) continue;
    const WarpOp op = like.op;
    const unsigned ballot = op == WarpOp::ballot ? vote(warp, group) : 0;
    if (is_shuffle(op)) exchange(warp, group);
    if (is_mma(op)) multiply_together(warp, group, op);
    if (op == WarpOp::sync) ++warp.epoch;
    for (int i = 0; i < 32; ++i) {
      if (!(group >> i & 1)) continue;
      warp.lanes[i].ballot = ballot;
      Fiber& each = owner.fibers[warp.first + unsigned(i)];
      // A shuffle orders no memory: it does not count as a barrier.
      if (op == WarpOp::sync) each.warp_epoch = warp.epoch;
      owner.wake(each);
    }
    warp.waiting &= ~group;
  }
}

unsigned warp_op(WarpOp op, unsigned mask, const void* in, void* out, int bytes, int argument, int width) {
  Warp& warp = *fiber->warp;
  const unsigned self = fiber->rank & 31;
  Lane& mine = warp.lanes[self];
  if (!(mask >> self & 1)) {
    fail(Error::warp_op, "lane %u is not in its own mask 0x%x", self, mask);
    mask |= 1u << self;
  }
  mine.op = op;
  mine.mask = mask;
  mine.argument = argument;
  mine.width = width;
  mine.bytes = bytes;
  if (in) std::memcpy(mine.value, in, std::size_t(bytes));
  warp.waiting |= 1u << self;
  fiber->state = State::at_warp_op;
  complete_warp_op(*block, warp);
  switch_away();
  if (out) std::memcpy(out, mine.result, std::size_t(bytes));
  return mine.ballot;
}

}  // namespace simt
