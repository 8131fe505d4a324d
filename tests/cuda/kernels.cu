// All CUDA kernels in one library, for the emulator.
#include "cam.cu"
#include "cgc.cu"
#include "cgc_backward.cu"
#include "contrast.cu"
#include "contrast_backward.cu"
#include "resample.cu"
#include "resample_backward.cu"

// Launches with a workspace; without one it tells how large that has to be.
template <class... Calls>
int run(void* workspace, std::int64_t* bytes, const Calls&... calls) {
  cgc::Stream stream = bytes == nullptr ? cgc::Stream(nullptr, workspace) : cgc::Stream();
  const int error = cgc::launch(calls..., stream);
  if (bytes != nullptr) *bytes = stream.taken();
  return error;
}

// For ctypes: a name and a C interface for each call.
#define CGC_CALL(name, Call)                                                                    \
  extern "C" int cgc_cuda_##name(const cgc::Call* call, void* workspace, std::int64_t* bytes) { \
    return run(workspace, bytes, *call);                                                        \
  }
#define CGC_LOSS(name, Call)                                                                      \
  extern "C" int cgc_cuda_##name(const cgc::Call* call, const cgc::Scalar* loss, void* workspace, \
                                 std::int64_t* bytes) {                                           \
    return run(workspace, bytes, *call, *loss);                                                   \
  }
CGC_CALL(cam, Cam)
CGC_CALL(cam_backward, CamBackward)
CGC_CALL(resample, Resample)
CGC_CALL(resample_backward, ResampleBackward)
CGC_LOSS(contrast, Contrast)
CGC_CALL(contrast_backward, ContrastBackward)
CGC_LOSS(cgc, Cgc)
CGC_CALL(cgc_backward, CgcBackward)
extern "C" const char* cgc_cuda_error(int code) { return cgc::launch_error(code); }
