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

// One number of a heatmap; of several splits it is written, too.
template <class Acc>
__device__ __forceinline__ Acc finished_heatmap(const Heatmaps& from, int view, index_t sample, int p) {
  const Acc* sums = static_cast<const Acc*>(from.sums[view]) + sample * from.splits * from.positions + p;
  Acc heatmap = simt::gld(sums);
  if (from.splits == 1) return heatmap;
#pragma unroll 4
  for (int split = 1; split < from.splits; ++split) heatmap += simt::gld(sums + split * from.positions);
  heatmap = relu(heatmap);
  simt::gst(static_cast<Acc*>(from.heatmaps[view]) + sample * from.positions + p, heatmap);
  return heatmap;
}

}  // namespace cgc::CGC_ISA
