// What the launches of one stream may rely on: a dependent launch starts before its predecessor has ended.
#pragma once

#include <cstdint>

namespace simt {

struct Order {
  std::uint32_t number = 0, predecessor = 0;  // of launches, in the order of the process; 0: none
  bool dependent = false;
  bool waited = true;            // every block for the predecessor, or the whole launch did before it started
  bool early = false;            // a thread lets the successor start before it has waited itself
  std::uint32_t at_start = 0;    // the stream's launches up to this one have ended when the blocks start,
  std::uint32_t after_wait = 0;  // and up to this one, beside the predecessor, once they have waited
  std::uint32_t host = 0;        // what the host did before this launch is done when the blocks start

  Order() = default;
  // Of the next launch after `last` on a stream.
  Order(std::uint32_t number, bool dependent, const Order& last);
  // Whether an earlier launch of the stream has ended, for a thread that has waited or not.
  bool ended(std::uint32_t launch, bool waited) const;
  // The same of what the host did when `launches` had been launched.
  bool host_is_done(std::uint32_t launches, bool waited) const;
};

extern Order order;  // of the running launch

}  // namespace simt
