#include "races.h"

#include "order.h"
#include "tickets.h"

namespace simt {
namespace {

enum class Ordered { yes, no, by_wait };  // by_wait: it would be, had the thread waited for its predecessor

// Whether everybody sees what `before` did when `now` happens.
Ordered ordered(const Access& before, const Access& now) {
  if (before.launch == 0) return Ordered::yes;
  // Launches on one stream follow each other; on two, nothing orders them.
  if (before.launch != now.launch && before.stream != now.stream) return Ordered::no;
  if (before.launch != now.launch) return order.ended(before.launch, now.waited) ? Ordered::yes : Ordered::by_wait;
  if (before.block != now.block) return tickets.ordered(before, now) ? Ordered::yes : Ordered::no;
  if (before.thread == now.thread || before.epoch != now.epoch) return Ordered::yes;
  return before.thread / 32 == now.thread / 32 && before.warp_epoch < now.warp_epoch ? Ordered::yes : Ordered::no;
}

void remember(Access (&reads)[4], const Access& now) {
  const Access& last = reads[0];
  if (last.launch != now.launch || last.block != now.block) {
    reads[1] = reads[2] = reads[3] = last;
  } else if (last.thread / 32 != now.thread / 32) {
    reads[1] = reads[2] = last;
  } else if (last.thread != now.thread) {
    reads[1] = last;
  }
  reads[0] = now;
}

}  // namespace

void Shadow::reset(std::size_t bytes, std::size_t together) {
  granule = together;
  pages.clear();
  pages.resize(bytes / granule / page_cells + 1);
}

Shadow::Cell& Shadow::cell(std::size_t index) {
  std::unique_ptr<Cell[]>& page = pages[index / page_cells];
  if (!page) page.reset(new Cell[page_cells]);
  return page[index % page_cells];
}

Conflict Shadow::judge(const Cell& cell, bool write, const Access& access, Access& earlier) const {
  const Ordered after_write = ordered(cell.write, access);
  if (after_write == Ordered::by_wait || (after_write == Ordered::no && !(access.atomic && cell.write.atomic))) {
    earlier = cell.write;
    return after_write == Ordered::no ? Conflict::after_write : Conflict::before_write_ends;
  }
  for (const Access& read : cell.reads) {
    const Ordered after_read = write ? ordered(read, access) : Ordered::yes;
    const bool by_other_path = write && read.read_only && read.launch == access.launch;
    if (after_read == Ordered::yes && !by_other_path) continue;
    earlier = read;
    return after_read == Ordered::no        ? Conflict::after_read
           : after_read == Ordered::by_wait ? Conflict::before_read_ends
                                            : Conflict::read_only;
  }
  if (access.read_only && cell.write.launch == access.launch) {
    earlier = cell.write;
    return Conflict::read_only;
  }
  if (global && cell.write.launch <= registered && !order.host_is_done(registered, access.waited))
    return Conflict::before_host_ends;
  const bool reads = !write || access.atomic;
  return reads && must_be_written_first && cell.write.launch == 0 ? Conflict::unwritten : Conflict::none;
}

Conflict Shadow::record(std::size_t offset, std::size_t bytes, bool write, const Access& access, Access& earlier) {
  Conflict worst = Conflict::none;
  for (std::size_t i = offset / granule; i <= (offset + bytes - 1) / granule; ++i) {
    Cell& touched = cell(i);
    const Conflict found = judge(touched, write, access, earlier);
    if (found != Conflict::none) worst = found;
    if (found == Conflict::after_write || found == Conflict::after_read) touched = Cell{};  // one fault, one message
    if (write || found == Conflict::unwritten) touched.write = access;
    if (!write) remember(touched.reads, access);
  }
  return worst;
}

}  // namespace simt
