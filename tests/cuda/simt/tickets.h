// What blocks of one launch know of each other through tickets (simt::take_ticket).
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "races.h"

namespace simt {

class Tickets {
 public:
  void forget();
  std::uint32_t drawn() const { return std::uint32_t(tickets.size()); }
  // now: of the thread that draws.
  void draw(const void* counter, const Access& now);
  // Whether `before`, in another block of the launch, came before a ticket that was drawn before one that comes before
  // `now`.
  bool ordered(const Access& before, const Access& now) const;

 private:
  struct Ticket {
    Access thread;                     // that drew it
    std::vector<std::uint64_t> known;  // a bit for each ticket whose past its holder sees, its own included
  };

  std::vector<Ticket> tickets;
  std::unordered_map<std::uint32_t, std::vector<std::uint32_t>> of_block;
  std::unordered_map<const void*, std::uint32_t> last_of;
};

extern Tickets tickets;

}  // namespace simt
