// The CUDA kernels as their callers see them, free of torch and of CUDA's headers. Every pointer inside a call is
// device memory. Nothing here waits for the device.
#pragma once

#include "../common/calls.h"

namespace cgc {

struct Launch {
  void* stream;          // cudaStream_t
  void* workspace;       // aligned to 16, not initialised
  std::int64_t* needed;  // where not null nothing is launched: what the call needs of workspace, in bytes, is added
};

// 0, or the error of the launch, for launch_error to name. In the backward of the fused loss the gradients of rows,
// keys and positives are null: they lie in the workspace.
int launch(const Launch& launch, const Cam& call);
int launch(const Launch& launch, const CamBackward& call);
int launch(const Launch& launch, const Resample& call);
int launch(const Launch& launch, const ResampleBackward& call);
int launch(const Launch& launch, const Contrast& call, const Scalar& loss);
int launch(const Launch& launch, const ContrastBackward& call);
int launch(const Launch& launch, const Cgc& call, const Scalar& loss);
int launch(const Launch& launch, const CgcBackward& call);

const char* launch_error(int code);

// Largest height and width of a map.
int largest_map_side();

}  // namespace cgc
