#include "poison.h"

#include <algorithm>
#include <cstring>

#include "memory.h"

namespace simt {

Poison poison;

void Poison::before_launch() {
  before.clear();
  if (!config.dependent) return;
  for (const auto& tensor : tensors) before.emplace_back(tensor->data, tensor->data + tensor->bytes);
}

void Poison::after_launch(std::uintptr_t stream) {
  std::vector<Range> ranges;
  for (std::size_t i = 0; i < before.size(); ++i) {
    std::vector<Range> of_tensor;
    char* now = const_cast<char*>(tensors[i]->data);
    if (std::memcmp(now, before[i].data(), before[i].size()) == 0) continue;
    const std::size_t unit = std::max<std::size_t>(4, tensors[i]->shadow.element());
    for (std::size_t at = 0; at < before[i].size(); at += unit) {
      const std::size_t bytes = std::min(unit, before[i].size() - at);
      if (std::memcmp(now + at, before[i].data() + at, bytes) != 0) add(of_tensor, now + at, bytes);
    }
    ranges.insert(ranges.end(), of_tensor.begin(), of_tensor.end());
  }
  before.clear();
  join(ranges);
  written[stream].push_back({order.number, std::move(ranges)});
}

void Poison::prepare(std::uintptr_t stream) {
  hidden.clear();
  std::vector<Written>& earlier = written[stream];
  const auto ended = [](const Written& each) { return each.launch <= order.at_start; };
  earlier.erase(std::remove_if(earlier.begin(), earlier.end(), ended), earlier.end());
  if (!order.dependent) return;
  for (const Written& each : earlier) hidden.insert(hidden.end(), each.ranges.begin(), each.ranges.end());
  for (const auto& tensor : tensors) {
    if (!order.host_is_done(tensor->shadow.registered, false)) {
      hidden.push_back({const_cast<char*>(tensor->data), tensor->bytes});
    }
  }
  join(hidden);
}

void Poison::show(bool show_truth) {
  if (hidden.empty() || show_truth != in_place) return;
  in_place = !show_truth;
  if (in_place) truth.clear();
  std::size_t at = 0;
  for (const Range& range : hidden) {
    if (in_place) {
      truth.insert(truth.end(), range.begin, range.begin + range.bytes);
      std::memset(range.begin, 0xff, range.bytes);
    } else {
      std::memcpy(range.begin, truth.data() + at, range.bytes);
      at += range.bytes;
    }
  }
}

void Poison::finish() {
  show(true);
  hidden.clear();
}

void Poison::forget() { written.clear(); }

// Begins ascend.
void Poison::add(std::vector<Range>& ranges, char* begin, std::size_t bytes) {
  if (ranges.empty() || begin > ranges.back().begin + ranges.back().bytes) {
    ranges.push_back({begin, bytes});
  } else {
    Range& last = ranges.back();
    last.bytes = std::max(last.bytes, std::size_t(begin + bytes - last.begin));
  }
}

void Poison::join(std::vector<Range>& ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> joined;
  for (const Range& range : ranges) add(joined, range.begin, range.bytes);
  ranges = std::move(joined);
}

}  // namespace simt
