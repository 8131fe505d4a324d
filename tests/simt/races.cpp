#include "races.h"

namespace simt {
namespace {

// Whether everybody sees what `before` did when `now` happens.
bool ordered(const Access& before, const Access& now) {
  if (before.era == 0) return true;
  // Launches on one stream follow each other; on two, nothing orders them.
  if (before.launch != now.launch) return before.stream == now.stream;
  if (before.era != now.era) return true;
  if (before.block != now.block) return false;
  if (before.thread == now.thread || before.epoch != now.epoch) return true;
  return before.thread / 32 == now.thread / 32 && before.warp_epoch < now.warp_epoch;
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
  if (!ordered(cell.write, access) && !(access.atomic && cell.write.atomic)) {
    earlier = cell.write;
    return Conflict::after_write;
  }
  for (const Access& read : cell.reads) {
    if (write && !ordered(read, access)) {
      earlier = read;
      return Conflict::after_read;
    }
  }
  const bool reads = !write || access.atomic;
  return reads && must_be_written_first && cell.write.era == 0 ? Conflict::unwritten : Conflict::none;
}

Conflict Shadow::record(std::size_t offset, std::size_t bytes, bool write, const Access& access, Access& earlier) {
  Conflict worst = Conflict::none;
  for (std::size_t i = offset / granule; i <= (offset + bytes - 1) / granule; ++i) {
    Cell& touched = cell(i);
    const Conflict found = judge(touched, write, access, earlier);
    if (found != Conflict::none) {
      worst = found;
      touched = Cell{};  // one fault, one message
    }
    if (write || found == Conflict::unwritten) touched.write = access;
    if (!write) remember(touched.reads, access);
  }
  return worst;
}

}  // namespace simt
