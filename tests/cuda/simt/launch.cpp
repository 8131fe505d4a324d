// Launches: one block after another, or a few together where a dependent launch waits.
#include <algorithm>
#include <mutex>
#include <numeric>
#include <unordered_map>

#include "internal.h"
#include "poison.h"
#include "tickets.h"

namespace simt {

Config config;
const Launch* launched;
const void* launch_site;
std::uint32_t launch_number;

namespace {

constexpr unsigned largest_block = 1024;
constexpr unsigned largest_grid_y = 65535;
constexpr std::size_t largest_shared = 99 * 1024;  // what every device since 8.0 gives a block, and simt.h asks for
constexpr std::size_t together = 16;  // blocks that wait at once: each change between poison and truth serves them all

std::unordered_map<std::uintptr_t, Order> last_of_stream;

// memcpy and memset are AddressSanitizer's where it is loaded, and refuse red zones.
void copy(char* target, const char* source, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) static_cast<volatile char*>(target)[i] = source[i];
}

std::vector<std::unique_ptr<Block>> blocks;  // kept for the next launch, with their stacks

Block& resident(std::size_t i) {
  while (blocks.size() <= i) blocks.emplace_back(new Block);
  return *blocks[i];
}

// Runs a block of several, with its own static shared memory in place.
void step_among_others(Block& mine) {
  copy(launched->shared_begin, mine.image.get(), launched->shared_bytes());
  mine.step();
  copy(mine.image.get(), launched->shared_begin, launched->shared_bytes());
}

// Runs some blocks, all of them up to the wait, or to their end, before one goes on. Returns how many never waited.
std::size_t run_together(const Launch& launch, const unsigned* ranks, std::size_t count) {
  std::size_t without_wait = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Block& mine = resident(i);
    mine.start(launch, ranks[i]);
    mine.image.reset(new char[launch.shared_bytes()]);
    copy(mine.image.get(), launch.shared_begin, launch.shared_bytes());
    step_among_others(mine);
  }
  for (std::size_t i = 0; i < count; ++i) {
    Block& mine = resident(i);
    mine.pass();
    step_among_others(mine);
    mine.finish();
    without_wait += !mine.waited;
  }
  return without_wait;
}

std::size_t run_alone(const Launch& launch, unsigned rank) {
  Block& mine = resident(0);
  mine.start(launch, rank);
  while (!mine.step()) mine.pass();
  mine.finish();
  return !mine.waited;
}

void run_all(const Launch& launch, const std::vector<unsigned>& ranks) {
  std::size_t without_wait = 0;
  for (std::size_t first = 0, count = 1; first < ranks.size(); first += count) {
    count = poison.empty() ? 1 : std::min(together, ranks.size() - first);
    without_wait += count > 1 ? run_together(launch, &ranks[first], count) : run_alone(launch, ranks[first]);
  }
  if (!order.dependent) return;
  order.waited = without_wait == 0;
  if (without_wait > 0) {
    fail(Error::dependence, "dependence: %zu of %zu blocks of a dependent launch never wait for the predecessor",
         without_wait, ranks.size());
  }
}

Outcome acceptable(const Launch& launch) {
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  const dim3 grid = launch.grid;
  const bool valid = threads >= 1 && threads <= largest_block && grid.x * grid.y * grid.z >= 1 &&
                     std::max(grid.y, grid.z) <= largest_grid_y;
  if (!valid) fail(Error::misuse, "launch of %u x %u x %u blocks of %u threads", grid.x, grid.y, grid.z, threads);
  const bool fits = launch.dynamic_bytes <= largest_shared;
  if (!fits) fail(Error::misuse, "launch of blocks with %zu bytes of shared memory", launch.dynamic_bytes);
  return valid && fits ? ended : given_up;
}

}  // namespace

Outcome run(const Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  launch_site = __builtin_return_address(0);
  if (const Outcome refusal = acceptable(launch)) return refusal;
  launched = &launch;
  gridDim = launch.grid;
  blockDim = launch.block;
  ++launch_number;
  tickets.forget();
  order = Order(launch_number, launch.dependent && config.dependent, last_of_stream[launch.stream]);
  poison.prepare(launch.stream);
  poison.before_launch();
  std::vector<char> host_data(launch.shared_bytes());  // the launcher may keep statics of its own there
  copy(host_data.data(), launch.shared_begin, launch.shared_bytes());
  std::vector<unsigned> ranks(launch.grid.x * launch.grid.y * launch.grid.z);
  std::iota(ranks.begin(), ranks.end(), 0u);
  std::mt19937 random(config.seed);
  if (config.seed) std::shuffle(ranks.begin(), ranks.end(), random);
  Outcome outcome = ended;
  try {
    run_all(launch, ranks);
  } catch (const Deadlock&) {
    outcome = given_up;  // the fibers are abandoned where they wait
  }
  copy(launch.shared_begin, host_data.data(), launch.shared_bytes());
  poison.finish();
  poison.after_launch(launch.stream);
  last_of_stream[launch.stream] = order;
  launched = nullptr;
  block = nullptr;
  launch_site = nullptr;
  return outcome;
}

void forget_launches() {
  last_of_stream.clear();
  poison.forget();
}

}  // namespace simt
