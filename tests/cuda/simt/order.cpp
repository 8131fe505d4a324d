#include "order.h"

namespace simt {

Order order;

Order::Order(std::uint32_t launch, bool is_dependent, const Order& last)
    : number(launch), predecessor(last.number), dependent(is_dependent), waited(!is_dependent) {
  if (!dependent) {
    at_start = after_wait = number - 1;
    host = number;
    return;
  }
  // The predecessor may let this launch start before its own wait. If it never waits, nobody knows of those before it.
  const std::uint32_t at_end = last.waited ? last.after_wait : last.at_start;
  at_start = last.early ? last.at_start : at_end;
  host = last.waited && !last.early ? last.number : last.host;
  after_wait = at_end >= last.predecessor ? last.number : at_end;
}

bool Order::ended(std::uint32_t launch, bool has_waited) const {
  if (!dependent) return true;
  return launch <= (has_waited ? after_wait : at_start) || (has_waited && launch == predecessor);
}

bool Order::host_is_done(std::uint32_t launches, bool has_waited) const {
  return !dependent || has_waited || launches < host;
}

}  // namespace simt
