#include "tickets.h"

namespace simt {

Tickets tickets;

namespace {

// Of one block: whether one thing came before another by a barrier or in the order of one thread.
bool precedes(const Access& before, const Access& after) {
  if (before.epoch != after.epoch) return before.epoch < after.epoch;
  if (before.thread == after.thread) return before.drawn <= after.drawn;
  return before.thread / 32 == after.thread / 32 && before.warp_epoch < after.warp_epoch;
}

void merge(std::vector<std::uint64_t>& into, const std::vector<std::uint64_t>& from) {
  for (std::size_t i = 0; i < from.size(); ++i) into[i] |= from[i];
}

}  // namespace

void Tickets::forget() {
  tickets.clear();
  of_block.clear();
  last_of.clear();
}

void Tickets::draw(const void* counter, const Access& now) {
  const std::uint32_t number = drawn();
  std::vector<std::uint64_t> known(number / 64 + 1);
  known[number / 64] |= std::uint64_t(1) << number % 64;
  const auto last = last_of.find(counter);
  if (last != last_of.end()) merge(known, tickets[last->second].known);
  std::vector<std::uint32_t>& own = of_block[now.block];
  for (const std::uint32_t earlier : own) {
    if (precedes(tickets[earlier].thread, now)) merge(known, tickets[earlier].known);
  }
  own.push_back(number);
  last_of[counter] = number;
  tickets.push_back({now, std::move(known)});
}

bool Tickets::ordered(const Access& before, const Access& now) const {
  const auto theirs = of_block.find(before.block), ours = of_block.find(now.block);
  if (theirs == of_block.end() || ours == of_block.end()) return false;
  for (const std::uint32_t mine : ours->second) {
    if (!precedes(tickets[mine].thread, now)) continue;
    const std::vector<std::uint64_t>& known = tickets[mine].known;
    for (const std::uint32_t other : theirs->second) {
      if (other / 64 < known.size() && known[other / 64] >> other % 64 & 1 && precedes(before, tickets[other].thread)) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace simt
