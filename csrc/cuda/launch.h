// The CUDA kernels as their callers see them, free of torch and of CUDA's headers. Every pointer inside a call is
// device memory. Nothing here waits for the device.
#pragma once

#include "../common/calls.h"

namespace cgc {

constexpr int largest_map_side = 32;  // largest height and width of a map

// Workspace and kernels of one call, in order. All kernels but the first may start while the one before ends: it is the
// first that follows work of others, which knows nothing of simt::release_successor().
class Stream {
 public:
  // Launches nothing: it counts what the call needs of workspace.
  Stream() = default;
  // stream: cudaStream_t; workspace: aligned to 16, not initialised.
  Stream(void* stream, void* workspace) : launches_(true), stream_(stream), workspace_(static_cast<char*>(workspace)) {}

  // Aligned to 16; null where nothing is launched.
  void* take(std::int64_t bytes) {
    const std::int64_t begin = taken_;
    taken_ += (bytes + 15) / 16 * 16;
    return launches_ ? workspace_ + begin : nullptr;
  }

  // 0, or the error of the first launch that failed, after which there is none. In platform.cuh.
  template <class Grid, class Call>
  int start(void (*kernel)(Call), Grid grid, std::int64_t shared_bytes, const Call& call);

  int error() const { return error_; }
  std::int64_t taken() const { return taken_; }  // bytes of workspace

 private:
  bool launches_ = false, started_ = false;
  void* stream_ = nullptr;
  char* workspace_ = nullptr;
  std::int64_t taken_ = 0;
  int error_ = 0;
};

// 0, or the error of the launch, for launch_error to name. In the backward of the fused loss the gradients of rows,
// keys and positives are null: they lie in the workspace.
int launch(const Cam& call, Stream& stream);
int launch(const CamBackward& call, Stream& stream);
int launch(const Resample& call, Stream& stream);
int launch(const ResampleBackward& call, Stream& stream);
int launch(const Contrast& call, const Scalar& loss, Stream& stream);
int launch(const ContrastBackward& call, Stream& stream);
int launch(const Cgc& call, const Scalar& loss, Stream& stream);
int launch(const CgcBackward& call, Stream& stream);

const char* launch_error(int code);

}  // namespace cgc
