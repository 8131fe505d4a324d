// The C interface of the runtime, for tests in Python.
#include <algorithm>
#include <cstring>

#include "memory.h"

using simt::tensors;

extern "C" {

// seed: the schedule, 0 for threads in order. yield_p: chance of a context switch before each memory access. dependent:
// whether dependent launches start before their predecessor has ended.
void simt_setup(unsigned seed, double yield_p, bool dependent) {
  simt::config.seed = seed;
  simt::config.yield_p = yield_p;
  simt::config.dependent = dependent;
}

// Kernels that were started since the process began.
unsigned simt_launches() { return simt::launch_number; }

// Registers a buffer of global memory. Once there is one, an access to anything unregistered is out of bounds.
// element: bytes of the smallest access to it.
void simt_watch(const void* data, std::size_t bytes, const char* name, std::size_t element) {
  for (const auto& tensor : tensors) {  // the host may have written what it passes again
    const char* const begin = static_cast<const char*>(data);
    const bool overlaps = begin < tensor->data + tensor->bytes && tensor->data < begin + bytes;
    if (overlaps) tensor->shadow.registered = simt::launch_number;
  }
  tensors.emplace_back(new simt::Tensor);
  tensors.back()->data = static_cast<const char*>(data);
  tensors.back()->bytes = bytes;
  tensors.back()->name = name;
  tensors.back()->shadow.reset(bytes, element);
  tensors.back()->shadow.global = true;
  tensors.back()->shadow.registered = simt::launch_number;
}

// The same, of a buffer whose bytes must be written by a kernel before one reads them.
void simt_watch_output(const void* data, std::size_t bytes, const char* name, std::size_t element) {
  simt_watch(data, bytes, name, element);
  tensors.back()->shadow.must_be_written_first = true;
}

// Forgets buffers, counts and errors.
void simt_reset() {
  tensors.clear();
  simt::forget_launches();
  simt::forget_errors();
}

unsigned long long simt_errors() {
  unsigned long long sum = 0;
  for (const unsigned long long each : simt::errors) sum += each;
  return sum;
}

// counts: of out of bounds, races, reads of what nothing wrote, bad warp operations, deadlocks, other misuse, accesses
// before the wait for the predecessor.
void simt_error_counts(unsigned long long counts[7]) {
  std::copy(std::begin(simt::errors), std::end(simt::errors), counts);
}

// The first messages, a line each; valid until the next error.
const char* simt_messages() { return simt::messages.c_str(); }

// sums: bytes requested, distinct bytes, sectors, requests, lanes, wasteful requests of the loads (write = 0) or stores
// of all buffers of that name. False if there is none.
bool simt_traffic(const char* name, int write, unsigned long long sums[6]) {
  std::fill_n(sums, 6, 0ull);
  bool found = false;
  for (const auto& tensor : tensors) {
    if (tensor->name != name) continue;
    const simt::Traffic& all = tensor->traffic[write];
    const unsigned long long added[] = {all.requested, all.distinct, all.sectors,
                                        all.requests,  all.lanes,    all.wasteful};
    for (int i = 0; i < 6; ++i) sums[i] += added[i];
    found = true;
  }
  return found;
}
}
