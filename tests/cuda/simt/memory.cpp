// Watched tensors: bounds, races and what every warp request moves; and the errors that were found.
#include <dlfcn.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

#include "memory.h"
#include "tickets.h"

namespace simt {

std::vector<std::unique_ptr<Tensor>> tensors;
unsigned long long errors[int(Error::count)];
std::string messages;
const void* running_site;

namespace {

constexpr int most_messages = 8;  // of a kind
int printed[int(Error::count)];

bool within(const void* address, const void* begin, std::size_t bytes) {
  return std::uintptr_t(address) - std::uintptr_t(begin) < bytes;
}

std::size_t distance(const void* address, const void* begin) {
  return std::size_t(static_cast<const char*>(address) - static_cast<const char*>(begin));
}

// Streams are pointers; the few that a test has are numbered as they appear.
std::uint16_t stream_number() {
  static std::vector<std::uintptr_t> streams;
  const auto known = std::find(streams.begin(), streams.end(), launched->stream);
  const auto number = known - streams.begin();
  if (known == streams.end()) streams.push_back(launched->stream);
  return std::uint16_t(number);
}

Access running_access(Path path) {
  Access now;
  now.launch = launch_number;
  now.block = block->rank;
  now.epoch = block->epoch;
  now.warp_epoch = fiber->warp_epoch;
  now.stream = stream_number();
  now.thread = fiber->rank & 0x1fff;
  now.drawn = tickets.drawn();
  now.atomic = path == Path::atomic;
  now.read_only = path == Path::read_only;
  now.waited = fiber->waited;
  return now;
}

void report(Conflict conflict, const char* what, const char* where, std::size_t offset, const Access& now,
            const Access& before) {
  const char* earlier = conflict == Conflict::after_write || conflict == Conflict::before_write_ends ? "write" : "read";
  if (conflict == Conflict::unwritten) {
    fail(Error::uninitialised, "%s of %s + %zu, which nothing has written", what, where, offset);
  } else if (conflict == Conflict::after_write || conflict == Conflict::after_read) {
    fail(Error::race, "race: %s of %s + %zu, not ordered after the %s by block %u thread %u%s", what, where, offset,
         earlier, before.block, unsigned(before.thread),
         before.launch != now.launch ? " of a launch on another stream" : "");
  } else if (conflict == Conflict::read_only) {
    fail(Error::misuse, "%s of %s + %zu, which block %u thread %u of the launch %s",
         now.read_only ? "gld_stream" : what, where, offset, before.block, unsigned(before.thread),
         now.read_only ? "wrote" : "read with gld_stream");
  } else if (conflict == Conflict::before_host_ends) {
    fail(Error::dependence, "dependence: %s of %s + %zu, which no earlier launch has waited for, before the wait", what,
         where, offset);
  } else {
    fail(Error::dependence,
         "dependence: %s of %s + %zu before the wait for the %s by block %u thread %u, %u launches ago", what, where,
         offset, earlier, before.block, unsigned(before.thread), now.launch - before.launch);
  }
}

void judge(Shadow& shadow, const char* where, std::size_t offset, std::size_t bytes, bool write, Path path) {
  const Access now = running_access(path);
  Access before;
  const Conflict conflict = shadow.record(offset, bytes, write, now, before);
  if (conflict != Conflict::none) report(conflict, write ? "write" : "read", where, offset, now, before);
}

void count(Tensor& tensor, unsigned tensor_index, const void* address, std::size_t bytes, bool write) {
  const unsigned lane = fiber->rank & 31;
  const std::uint64_t key = std::uint64_t(std::uintptr_t(running_site)) ^ std::uint64_t(tensor_index) << 48;
  CallSite& site = fiber->warp->sites[write][key];
  const unsigned nth = site.executed[lane]++;
  if (site.requests.size() <= nth) site.requests.resize(nth + 1);
  Request& request = site.requests[nth];
  request.tensor = &tensor;
  request.lanes |= 1u << lane;
  request.requested += bytes;
  const std::uintptr_t first = std::uintptr_t(address), end = first + bytes;
  for (std::uintptr_t sector = first / 32; sector <= (end - 1) / 32; ++sector) {
    const unsigned from = sector * 32 < first ? unsigned(first - sector * 32) : 0;
    const unsigned to = (sector + 1) * 32 > end ? unsigned(end - sector * 32) : 32;
    request.add(sector, std::uint32_t(((std::uint64_t(1) << (to - from)) - 1) << from));
  }
}

void check(const void* address, std::size_t bytes, bool write, Path path) {
  const char* shared = launched->shared_begin;
  if (within(address, &threadIdx, sizeof(threadIdx)) || within(address, &blockIdx, sizeof(blockIdx)) ||
      within(address, &blockDim, sizeof(blockDim)) || within(address, &gridDim, sizeof(gridDim)) ||
      within(address, block->stacks, block->stacks_bytes) ||
      within(address, launched->arguments, launched->arguments_bytes) ||
      within(address, launched->image_begin, distance(shared, launched->image_begin))) {
    return;
  }
  if (within(address, shared, distance(launched->image_end, shared))) {
    return judge(block->static_shadow, "shared memory", distance(address, shared), bytes, write, path);
  }
  const void* dynamic = block->dynamic.get();
  if (within(address, dynamic, block->dynamic_bytes) && distance(address, dynamic) + bytes <= block->dynamic_bytes) {
    return judge(block->dynamic_shadow, "dynamic shared memory", distance(address, dynamic), bytes, write, path);
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    Tensor& tensor = *tensors[i];
    if (!within(address, tensor.data, tensor.bytes) || distance(address, tensor.data) + bytes > tensor.bytes) continue;
    count(tensor, unsigned(i), address, bytes, write);
    return judge(tensor.shadow, tensor.name.c_str(), distance(address, tensor.data), bytes, write, path);
  }
  fail(Error::out_of_bounds, "out of bounds: %s %zu bytes at %p", write ? "write of" : "read of", bytes, address);
}

}  // namespace

void fail(Error kind, const char* format, ...) {
  ++errors[int(kind)];
  if (printed[int(kind)]++ >= most_messages) return;
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  char line[1100];
  char who[64] = "", where[512] = "";
  if (fiber != nullptr) std::snprintf(who, sizeof(who), "; block %u thread %u", block->rank, fiber->rank);
  const void* const site = fiber != nullptr ? running_site : launch_site;
  Dl_info place{};
  if (site != nullptr && dladdr(site, &place) != 0) {
    // The call site less one: a return address may belong to the next line.
    std::snprintf(where, sizeof(where), "%s at %s+0x%zx", fiber != nullptr ? "" : "; launched", place.dli_fname,
                  distance(site, place.dli_fbase) - 1);
  }
  std::snprintf(line, sizeof(line), "%s%s%s\n", text, who, where);
  std::fprintf(stderr, "simt: %s", line);
  messages += line;
}

void Request::add(std::uintptr_t sector, std::uint32_t mask) {
  for (auto& known : sectors) {
    if (known.first == sector) {
      known.second |= mask;
      return;
    }
  }
  sectors.emplace_back(sector, mask);
}

void count_requests(Block& block) {
  for (Warp& warp : block.warps) {
    for (int write = 0; write < 2; ++write) {
      for (auto& site : warp.sites[write]) {
        for (const Request& request : site.second.requests) {
          if (request.lanes) request.tensor->traffic[write].add(request);
        }
      }
      warp.sites[write].clear();
    }
  }
}

void Traffic::add(const Request& request) {
  std::uint64_t used = 0;
  for (const auto& sector : request.sectors) used += unsigned(__builtin_popcount(sector.second));
  requested += request.requested;
  distinct += used;
  sectors += request.sectors.size();
  requests += 1;
  lanes += unsigned(__builtin_popcount(request.lanes));
  wasteful += 10 * used < 9 * 32 * request.sectors.size();
}

void access(const void* address, std::size_t bytes, bool write, Path path, void* call_site) {
  if (fiber == nullptr) return;  // the launcher's own code
  constexpr double scale = 4294967296.0;
  if (config.yield_p > 0 && double(block->random()) < config.yield_p * scale) {
    block->wake(*fiber);
    switch_away();
  }
  if (tensors.empty()) return;
  running_site = call_site;
  check(address, bytes, write, path);
  running_site = nullptr;
}

void draw_ticket(const void* counter) { tickets.draw(counter, running_access(Path::atomic)); }

void forget_errors() {
  std::memset(errors, 0, sizeof(errors));
  messages.clear();
  std::fill(std::begin(printed), std::end(printed), 0);
}

}  // namespace simt
