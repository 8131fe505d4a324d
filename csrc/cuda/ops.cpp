// The GPU's side of the operators: device, stream, workspace, errors, and their registration. No CUDA header is needed.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../common/operators.h"
#include "launch.h"

namespace cgc {
namespace {

struct Cuda {
  static constexpr const char* name = "CUDA";

  // Kernels are launched on the tensor's device, whatever the current one was.
  class Scope {
   public:
    explicit Scope(const Tensor& tensor) : guard_(checked(tensor)) {}

   private:
    static int32_t checked(const Tensor& tensor) {
      STD_TORCH_CHECK(tensor.is_cuda(), "the first tensor of a CUDA operator must be a CUDA tensor");
      return tensor.get_device_index();
    }

    torch::stable::accelerator::DeviceGuard guard_;
  };

  // On the device of this call.
  static bool holds(const Tensor& tensor) {
    return tensor.is_cuda() && tensor.get_device_index() == torch::stable::accelerator::getCurrentDeviceIndex();
  }

  static void check_map(Index height, Index width) {
    const int most = cgc_cuda_largest_side();
    STD_TORCH_CHECK(height <= most && width <= most, "maps must be at most ", most, " x ", most,
                    " for backend 'cuda', got ", height, " x ", width, ": use backend='torch'");
  }

  static void prepare(Tensor&) {}

  static void check(int error) { STD_TORCH_CHECK(error == 0, "CUDA kernel launch failed: ", cgc_cuda_error(error)); }

  // On the current stream of the device, to which torch's allocator ties the workspace.
  static Launch launch(const Tensor& like, const Tensor* workspace = nullptr) {
    Launch launch{};
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &launch.stream));
    if (workspace != nullptr && workspace->numel() > 0) launch.workspace = workspace->mutable_data_ptr();
    return launch;
  }

  static Tensor bytes(const Tensor& like, Index count) {
    return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(&count, 1), ScalarType::Byte);
  }

  static void run(const Cam& call, const Tensor& like) {
    const Tensor workspace = bytes(like, cgc_cuda_cam_workspace(&call));
    const Launch how = launch(like, &workspace);
    check(cgc_cuda_cam(&call, &how));
  }
  static void run(const CamBackward& call, const Tensor& like) {
    const Launch how = launch(like);
    check(cgc_cuda_cam_backward(&call, &how));
  }
  static void run(const Resample& call, const Tensor& like) {
    const Launch how = launch(like);
    check(cgc_cuda_resample(&call, &how));
  }
  static void run(const ResampleBackward& call, const Tensor& like) {
    const Launch how = launch(like);
    check(cgc_cuda_resample_backward(&call, &how));
  }
  static void run(const Contrast& call, const Scalar& loss, const Tensor& like) {
    const Tensor workspace = bytes(like, cgc_cuda_contrast_workspace(&call));
    const Launch how = launch(like, &workspace);
    check(cgc_cuda_contrast(&call, &loss, &how));
  }
  static void run(const ContrastBackward& call, const Tensor& like) {
    const Launch how = launch(like);
    check(cgc_cuda_contrast_backward(&call, &how));
  }
  static void run(const Cgc& call, const Scalar& loss, const Tensor& like) {
    const Tensor workspace = bytes(like, cgc_cuda_cgc_workspace(&call));
    const Launch how = launch(like, &workspace);
    check(cgc_cuda_cgc(&call, &loss, &how));
  }
  static void run(const CgcBackward& call, const Tensor& like) {
    const Tensor workspace = bytes(like, cgc_cuda_cgc_backward_workspace(&call));
    const Launch how = launch(like, &workspace);
    check(cgc_cuda_cgc_backward(&call, &how));
  }
};

}  // namespace
}  // namespace cgc

STABLE_TORCH_LIBRARY_IMPL(cgc_kernels, CUDA, m) { cgc::Operators<cgc::Cuda>::implement(m); }
