// Who touched each byte last, to tell whether two accesses were ordered by a barrier. Schedules need not show the
// fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace simt {

struct Access {
  std::uint32_t launch = 0;  // 0: never
  std::uint32_t block = 0, epoch = 0, warp_epoch = 0;
  std::uint32_t drawn = 0;  // tickets that the launch had drawn before
  std::uint16_t stream = 0;
  std::uint16_t thread : 13, atomic : 1, read_only : 1;
  std::uint16_t waited : 1;  // for the predecessor

  Access() : thread(0), atomic(0), read_only(0), waited(0) {}
};

enum class Conflict {
  none,
  after_write,
  after_read,
  unwritten,
  before_write_ends,  // of an earlier launch, for which the thread has not waited
  before_read_ends,
  before_host_ends,
  read_only,  // the launch writes it too
};

class Shadow {
 public:
  // granule: bytes that are judged together, at most the smallest access.
  void reset(std::size_t bytes, std::size_t granule);
  // Judges and records an access to [offset, offset + bytes); `earlier` is the access it is in conflict with.
  Conflict record(std::size_t offset, std::size_t bytes, bool write, const Access& access, Access& earlier);

  std::size_t element() const { return granule; }

  bool must_be_written_first = false;
  bool global = false;           // made by the host
  std::uint32_t registered = 0;  // global: launches before that

 private:
  // The last write, and reads: the last one, the last ones before it by another thread, another warp, another block. A
  // write by the last reader itself is thus still held against the others.
  struct Cell {
    Access write, reads[4];
  };
  static constexpr std::size_t page_cells = 256;

  Cell& cell(std::size_t index);
  Conflict judge(const Cell& cell, bool write, const Access& access, Access& earlier) const;

  std::size_t granule = 1;
  std::vector<std::unique_ptr<Cell[]>> pages;  // made when first touched
};

}  // namespace simt
