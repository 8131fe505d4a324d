// Watched tensors: bounds, races and what every warp request moves; and the errors that were found.
#include <dlfcn.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

#include "memory.h"

namespace simt {

std::vector<std::unique_ptr<Tensor>> tensors;
unsigned long long errors[int(Error::count)];
std::string messages;

namespace {

constexpr int most_messages = 8;
int printed;
void* running_site;  // of the access that is being checked

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

void judge(Shadow& shadow, const char* where, std::size_t offset, std::size_t bytes, bool write, bool atomic) {
  Access now;
  now.era = era;
  now.launch = launch_number;
  now.block = block->rank;
  now.epoch = block->epoch;
  now.warp_epoch = fiber->warp_epoch;
  now.stream = stream_number();
  now.thread = fiber->rank & 0x7fff;
  now.atomic = atomic;
  Access before;
  const char* what = write ? "write of" : "read of";
  const Conflict conflict = shadow.record(offset, bytes, write, now, before);
  if (conflict == Conflict::unwritten) {
    fail(Error::uninitialised, "%s %s + %zu, which nothing has written", what, where, offset);
  } else if (conflict != Conflict::none) {
    fail(Error::race, "race: %s %s + %zu, not ordered after the %s by block %u thread %u%s", what, where, offset,
         conflict == Conflict::after_write ? "write" : "read", before.block, unsigned(before.thread),
         before.launch != now.launch ? " of a launch on another stream" : "");
  }
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

void check(const void* address, std::size_t bytes, bool write, bool atomic) {
  const char* shared = launched->shared_begin;
  if (within(address, &threadIdx, sizeof(threadIdx)) || within(address, &blockIdx, sizeof(blockIdx)) ||
      within(address, &blockDim, sizeof(blockDim)) || within(address, &gridDim, sizeof(gridDim)) ||
      within(address, block->stacks, block->stacks_bytes) ||
      within(address, launched->arguments, launched->arguments_bytes) ||
      within(address, launched->image_begin, distance(shared, launched->image_begin))) {
    return;
  }
  if (within(address, shared, distance(launched->image_end, shared))) {
    return judge(block->static_shadow, "shared memory", distance(address, shared), bytes, write, atomic);
  }
  const void* dynamic = block->dynamic.get();
  if (within(address, dynamic, block->dynamic_bytes) && distance(address, dynamic) + bytes <= block->dynamic_bytes) {
    return judge(block->dynamic_shadow, "dynamic shared memory", distance(address, dynamic), bytes, write, atomic);
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    Tensor& tensor = *tensors[i];
    if (!within(address, tensor.data, tensor.bytes) || distance(address, tensor.data) + bytes > tensor.bytes) continue;
    count(tensor, unsigned(i), address, bytes, write);
    return judge(tensor.shadow, tensor.name.c_str(), distance(address, tensor.data), bytes, write, atomic);
  }
  fail(Error::out_of_bounds, "out of bounds: %s %zu bytes at %p", write ? "write of" : "read of", bytes, address);
}

}  // namespace

void fail(Error kind, const char* format, ...) {
  ++errors[int(kind)];
  if (printed++ >= most_messages) return;
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  char line[1024];
  Dl_info place{};
  if (fiber == nullptr) {
    std::snprintf(line, sizeof(line), "%s\n", text);
  } else if (running_site != nullptr && dladdr(running_site, &place) != 0) {
    // The call site less one: a return address may belong to the next line.
    std::snprintf(line, sizeof(line), "%s; block %u thread %u at %s+0x%zx\n", text, block->rank, fiber->rank,
                  place.dli_fname, distance(running_site, place.dli_fbase) - 1);
  } else {
    std::snprintf(line, sizeof(line), "%s; block %u thread %u\n", text, block->rank, fiber->rank);
  }
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

void access(const void* address, std::size_t bytes, bool write, bool atomic, void* call_site) {
  if (fiber == nullptr) return;  // the launcher's own code
  constexpr double scale = 4294967296.0;
  if (config.yield_p > 0 && double(block->random()) < config.yield_p * scale) {
    block->wake(*fiber);
    switch_away();
  }
  if (tensors.empty()) return;
  running_site = call_site;
  check(address, bytes, write, atomic);
  running_site = nullptr;
}

void forget_errors() {
  std::memset(errors, 0, sizeof(errors));
  messages.clear();
  printed = 0;
}

}  // namespace simt
