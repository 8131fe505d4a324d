// All CUDA kernels in one library, for the emulator.
#include "cam.cu"
#include "cgc.cu"
#include "cgc_backward.cu"
#include "contrast.cu"
#include "crop_matrices.cu"
#include "resample.cu"
#include "resample_backward.cu"

// For ctypes: a name and a C interface for each call.
#define CGC_CALL(name, Call) \
  extern "C" int cgc_cuda_##name(const cgc::Call* call, const cgc::Launch* how) { return cgc::launch(*how, *call); }
#define CGC_LOSS(name, Call)                                                                               \
  extern "C" int cgc_cuda_##name(const cgc::Call* call, const cgc::Scalar* loss, const cgc::Launch* how) { \
    return cgc::launch(*how, *call, *loss);                                                                \
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
