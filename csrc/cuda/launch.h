// The CUDA kernels as their callers see them: one function each with a C interface, free of torch and of CUDA's
// headers. Every pointer inside a call is device memory. Nothing here waits for the device.
#pragma once

#include "../common/calls.h"

namespace cgc {

enum class Form : std::int32_t {
  automatic,    // one cooperative kernel where it fits the device, the sequence elsewhere
  cooperative,  // or an error
  sequence,     // one kernel a phase
};

struct Launch {
  void* stream;         // cudaStream_t
  void* workspace;      // as many bytes as the call's *_workspace says, aligned to 16, not initialised
  Form form;            // of the fused kernels; the stages are always sequences
  std::int32_t blocks;  // of the grid; 0 for what the device holds at once
};

}  // namespace cgc

extern "C" {

// Bytes of workspace.
std::int64_t cgc_cuda_cam_workspace(const cgc::Cam* call);
std::int64_t cgc_cuda_contrast_workspace(const cgc::Contrast* call);
std::int64_t cgc_cuda_cgc_workspace(const cgc::Cgc* call);
std::int64_t cgc_cuda_cgc_backward_workspace(const cgc::CgcBackward* call);

// 0, or the error of the launch, for cgc_cuda_error to name.
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
