// What launchers share: the workspace, and a stream whose later kernels overlap the end of the one before.
#pragma once

#include "launch.h"
#include "platform.cuh"

namespace cgc::CGC_ISA {

// Workspace and kernels of one call, in order. All kernels but the first may start while the one before ends: it is the
// first that follows work of others, which knows nothing of simt::release_successor().
class Stream {
 public:
  explicit Stream(const Launch& launch) : launch_(launch), next_(static_cast<char*>(launch.workspace)) {}

  // Null where nothing is launched.
  void* take(index_t bytes) {
    const index_t size = round_up(bytes, index_t(16));
    if (launch_.needed != nullptr) {
      *launch_.needed += size;
      return nullptr;
    }
    return (next_ += size) - size;
  }

  // 0, or the error of the first launch that failed, after which there is none.
  template <class Call>
  int start(void (*kernel)(Call), dim3 grid, index_t shared_bytes, const Call& call) {
    if (error_ != 0 || launch_.needed != nullptr) return error_;
    const auto bytes = std::size_t(shared_bytes);
    error_ = started_ ? SIMT_LAUNCH_DEPENDENT(kernel, grid, block_threads, bytes, launch_.stream, call)
                      : SIMT_LAUNCH(kernel, grid, block_threads, bytes, launch_.stream, call);
    started_ = true;
    return error_;
  }
  int error() const { return error_; }

 private:
  const Launch launch_;
  char* next_;
  int error_ = 0;
  bool started_ = false;
};

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
#pragma unroll
    for (int i = 0; i < views * together; ++i) {
      const int view = i / together, split = first + i % together;
      const Acc* sums = static_cast<const Acc*>(from.sums[view]) + (sample * from.splits + split) * from.positions + p;
      parts[view][i % together] = split < from.splits ? simt::gld(sums) : Acc(0);
    }
#pragma unroll
    for (int i = 0; i < views * together; ++i) heatmaps[i / together] += parts[i / together][i % together];
  }
  if (from.splits == 1) return;
#pragma unroll
  for (int view = 0; view < views; ++view) {
    heatmaps[view] = relu(heatmaps[view]);
    simt::gst(static_cast<Acc*>(from.heatmaps[view]) + sample * from.positions + p, heatmaps[view]);
  }
}

}  // namespace cgc::CGC_ISA
