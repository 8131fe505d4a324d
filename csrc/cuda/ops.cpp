// The GPU's side of the operators: device, stream, workspace, errors, and their registration. No CUDA header is needed.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../common/operators.h"
#include "launch.h"

namespace cgc {
namespace {

// Kernels are launched on the tensor's device, whatever the current one was, and on the current stream of that device,
// to which torch's allocator ties their workspace.
class Cuda {
 public:
  static constexpr const char* name = "CUDA";

  explicit Cuda(const Tensor& tensor) : tensor_(tensor), index_(index_of(tensor)), guard_(index_) {}

  bool holds(const Tensor& tensor) const { return tensor.is_cuda() && tensor.get_device_index() == index_; }

  // The kernels index samples by int and the bytes of one by 32 bits.
  static void check_sizes(Index batch, Index channels, Index height, Index width) {
    constexpr Index largest_sample = Index(1) << 28;
    constexpr Index side = largest_map_side;
    STD_TORCH_CHECK(height <= side && width <= side, "maps must be at most ", side, " x ", side,
                    " for backend 'cuda', got ", height, " x ", width, ": use backend='torch'");
    STD_TORCH_CHECK(batch <= largest_int / 2 && channels <= largest_sample / (height * width), "B must be at most ",
                    largest_int / 2, " and C * H * W at most ", largest_sample, " for backend 'cuda', got ", batch,
                    " and ", channels, " * ", height, " * ", width, ": use backend='torch'");
  }

  static void check_rows(Index batch, Index length) {
    constexpr Index side = largest_map_side;
    STD_TORCH_CHECK(batch <= largest_int / 2 && length <= side * side, "rows must be at most ", largest_int / 2, " x ",
                    side * side, " for backend 'cuda', got ", batch, " x ", length, ": use backend='torch'");
  }

  static void prepare(Tensor&) {}

  template <class... Calls>
  void run(const Calls&... calls) const {
    Stream plan;
    launch(calls..., plan);
    Tensor workspace = make(tensor_, {plan.taken()}, ScalarType::Byte);
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &current));
    Stream stream(current, workspace.mutable_data_ptr());
    const int error = launch(calls..., stream);
    STD_TORCH_CHECK(error == 0, "CUDA kernel launch failed: ", launch_error(error));
  }

 private:
  static std::int32_t index_of(const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.is_cuda(), "the first tensor of a CUDA operator must be on a CUDA device, got ",
                    described(tensor));
    return tensor.get_device_index();
  }

  const Tensor& tensor_;
  std::int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace
}  // namespace cgc

STABLE_TORCH_LIBRARY_IMPL(cgc_kernels, CUDA, m) { cgc::implement<cgc::Cuda>(m); }
