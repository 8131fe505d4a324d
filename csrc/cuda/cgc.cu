// The three stages forward, four kernels for the released objective; and the entries of the calls of one stage.
#include "cam.cuh"
#include "contrast.cuh"
#include "resample.cuh"

namespace cgc {

using namespace CGC_ISA;

int launch(const CamBackward& call, Stream& stream) { return launch_cam_backward(&call, 1, stream); }

int launch(const Resample& call, Stream& stream) {
  const void* matrices = launch_crop_matrices(call, stream);
  const Heatmaps heatmaps{{call.heatmaps, call.aug_heatmaps}, {}, 1, int(call.height * call.width)};
  return launch_resample(call, heatmaps, matrices, nullptr, stream);
}

int launch(const ResampleBackward& call, Stream& stream) {
  return launch_resample_backward(call, launch_crop_matrices(call.forward, stream), {}, false, stream);
}

int launch(const Contrast& call, const Scalar& loss, Stream& stream) { return launch_contrast({call, loss}, stream); }

int launch(const ContrastBackward& call, Stream& stream) { return launch_contrast_backward(call, stream); }

int launch(const Cgc& call, const Scalar& loss, Stream& stream) {
  const Resample& resample = call.resample;
  auto* counter = static_cast<unsigned*>(stream.take(sizeof(unsigned)));
  const void* matrices = launch_crop_matrices(resample, stream);
  launch_resample(resample, launch_cam(call.views, 2, stream), matrices, counter, stream);
  const double pixels = double(resample.size_h) * double(resample.size_w);
  return launch_contrast({call.contrast, loss, resample.objective, call.consistency, pixels, counter}, stream);
}

const char* launch_error(int code) { return simt::error_text(code); }

}  // namespace cgc
