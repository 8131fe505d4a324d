// What launchers share: the launch of a kernel, and what stage cam leaves to the next kernel.
#pragma once

#include "launch.h"
#include "platform.cuh"

template <class Grid, class Call>
int cgc::Stream::start(void (*kernel)(Call), Grid grid, std::int64_t shared_bytes, const Call& call) {
  if (!launches_ || error_ != 0) return error_;
  error_ = simt::launch(started_, kernel, grid, CGC_ISA::block_threads, std::size_t(shared_bytes), stream_, call);
  started_ = true;
  return error_;
}

namespace cgc::CGC_ISA {

// What stage cam leaves to the next: sums over the channels of every split.
struct Heatmaps {
  const void* sums[2];  // of each view acc [B, splits, P]; with one split the heatmaps
  void* heatmaps[2];    // acc [B, P], written where there are several
  int splits, positions;
};

// One number of the heatmaps of `views` views; of several splits they are written, too.
template <int views, class Acc>
__device__ __forceinline__ void finish_heatmaps(const Heatmaps& from, index_t sample, int p, Acc (&heatmaps)[views]) {
  constexpr int together = 4;  // loads of a view
#pragma unroll
  for (Acc& heatmap : heatmaps) heatmap = 0;
#pragma unroll 1
  for (int first = 0; first < from.splits; first += together) {
    Acc parts[views][together];
    unrolled<views * together>([&](int i) {
      const int view = i / together, split = first + i % together;
      const Acc* sums = static_cast<const Acc*>(from.sums[view]) + (sample * from.splits + split) * from.positions + p;
      parts[view][i % together] = split < from.splits ? simt::gld(sums) : Acc(0);
    });
    unrolled<views * together>([&](int i) { heatmaps[i / together] += parts[i / together][i % together]; });
  }
  if (from.splits == 1) return;
  unrolled<views>([&](int view) {
    heatmaps[view] = relu(heatmaps[view]);
    simt::gst(static_cast<Acc*>(from.heatmaps[view]) + sample * from.positions + p, heatmaps[view]);
  });
}

}  // namespace cgc::CGC_ISA
