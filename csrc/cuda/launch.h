// The CUDA kernels as their callers see them: one function each with a C interface, free of torch and of CUDA's
// headers. Every pointer inside a call is device memory. Nothing here waits for the device.
#pragma once

#include "../common/calls.h"

namespace cgc {

struct Launch {
  void* stream;          // cudaStream_t
  void* workspace;       // aligned to 16, not initialised
  std::int64_t* needed;  // where not null nothing is launched: what the call needs of workspace, in bytes, is added
};

}  // namespace cgc

extern "C" {

// 0, or the error of the launch, for cgc_cuda_error to name. In the backward of the fused loss the gradients of rows,
// keys and positives are null: they lie in the workspace.
int cgc_cuda_cam(const cgc::Cam* call, const cgc::Launch* launch);
int cgc_cuda_cam_backward(const cgc::CamBackward* call, const cgc::Launch* launch);
int cgc_cuda_resample(const cgc::Resample* call, const cgc::Launch* launch);
int cgc_cuda_resample_backward(const cgc::ResampleBackward* call, const cgc::Launch* launch);
int cgc_cuda_contrast(const cgc::Contrast* call, const cgc::Scalar* loss, const cgc::Launch* launch);
int cgc_cuda_contrast_backward(const cgc::ContrastBackward* call, const cgc::Launch* launch);
int cgc_cuda_cgc(const cgc::Cgc* call, const cgc::Scalar* loss, const cgc::Launch* launch);
int cgc_cuda_cgc_backward(const cgc::CgcBackward* call, const cgc::Launch* launch);

const char* cgc_cuda_error(int code);

// Largest height and width of a map.
int cgc_cuda_largest_side();
}
