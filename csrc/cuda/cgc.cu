// The three stages forward, three kernels for the released objective; and the C interface of all but its backward.
#include "cam.cuh"
#include "contrast.cuh"
#include "resample.cuh"

namespace cgc::CGC_ISA {
namespace {

int launch_cgc(const Cgc& call, const Scalar& loss, Stream& stream) {
  const Resample& resample = call.resample;
  auto* counter = static_cast<unsigned*>(stream.take(sizeof(unsigned)));
  launch_resample(resample, launch_cam(call.views, 2, stream), counter, stream);
  const double pixels = double(resample.size_h) * double(resample.size_w);
  return launch_contrast({call.contrast, loss, resample.objective, call.consistency, pixels, counter}, stream);
}

}  // namespace
}  // namespace cgc::CGC_ISA

using namespace cgc::CGC_ISA;

int cgc_cuda_cam(const cgc::Cam* call, const cgc::Launch* launch) {
  Stream stream(*launch);
  return launch_heatmaps(*call, stream);
}

int cgc_cuda_cam_backward(const cgc::CamBackward* call, const cgc::Launch* launch) {
  Stream stream(*launch);
  return launch_cam_backward(call, 1, stream);
}

int cgc_cuda_resample(const cgc::Resample* call, const cgc::Launch* launch) {
  Stream stream(*launch);
  return launch_resample(*call, {{call->heatmaps, call->aug_heatmaps}, {}, 1, int(call->height * call->width)}, nullptr,
                         stream);
}

int cgc_cuda_resample_backward(const cgc::ResampleBackward* call, const cgc::Launch* launch) {
  Stream stream(*launch);
  return launch_resample_backward(*call, {}, false, stream);
}

int cgc_cuda_contrast(const cgc::Contrast* call, const cgc::Scalar* loss, const cgc::Launch* launch) {
  Stream stream(*launch);
  return launch_contrast({*call, *loss}, stream);
}

int cgc_cuda_contrast_backward(const cgc::ContrastBackward* call, const cgc::Launch* launch) {
  Stream stream(*launch);
  return launch_contrast_backward(*call, stream);
}

int cgc_cuda_cgc(const cgc::Cgc* call, const cgc::Scalar* loss, const cgc::Launch* launch) {
  Stream stream(*launch);
  return launch_cgc(*call, *loss, stream);
}

const char* cgc_cuda_error([[maybe_unused]] int code) {
#ifdef __CUDACC__
  return cudaGetErrorString(cudaError_t(code));
#else
  return "the emulator refused the launch, or it did not end";
#endif
}

int cgc_cuda_largest_side() { return largest_side; }
