// Watched tensors and the errors found so far.
#pragma once

#include <string>

#include "internal.h"

namespace simt {

// Sums over warp requests, in bytes unless it is said otherwise.
struct Traffic {
  std::uint64_t requested = 0;            // by each lane
  std::uint64_t distinct = 0;             // different ones in a request: what several lanes read together counts once
  std::uint64_t sectors = 0;              // number of pieces of 32 bytes
  std::uint64_t requests = 0, lanes = 0;  // numbers of them
  std::uint64_t wasteful = 0;             // number of requests that use less than 90 % of their sectors

  void add(const Request& request);
};

struct Tensor {
  const char* data;
  std::size_t bytes;
  std::string name;
  Shadow shadow;
  Traffic traffic[2];  // loads, stores
};

extern std::vector<std::unique_ptr<Tensor>> tensors;
extern unsigned long long errors[int(Error::count)];
extern std::string messages;
void forget_errors();

}  // namespace simt
