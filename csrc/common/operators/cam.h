// Operators of stage cam: features, gradients -> heatmaps.
#pragma once

#include <tuple>

#include "tensors.h"

namespace cgc {

template <class Device>
struct CamOperators {
  struct Names {
    const char* features;
    const char* gradients;
  };

  static std::tuple<Tensor, Tensor> cam(const Tensor& features, const Tensor& gradients, bool elementwise) {
    const Device device(features);
    Cam call = describe(device, features, gradients, elementwise);
    const ScalarType type = accumulator(call);
    Tensor heatmaps = make(features, {call.batch, features.size(2), features.size(3)}, type);
    Tensor weights = call.weighting == Weighting::mean ? make(features, {call.batch, call.channels}, type)
                                                       : make(features, {0}, type);
    call.heatmaps = heatmaps.mutable_data_ptr();
    call.weights = writable(weights);
    device.run(call);
    return {heatmaps, weights};
  }

  static std::tuple<Tensor, Tensor> cam_backward(const Tensor& grad_heatmaps, const Tensor& heatmaps,
                                                 const Tensor& features, const Tensor& gradients, bool need_features,
                                                 bool need_gradients) {
    const Device device(features);
    CamBackward call{};
    call.forward = describe(device, features, gradients, true);
    const Shape shape = {call.forward.batch, features.size(2), features.size(3)};
    check(device, heatmaps, "heatmaps", shape, accumulator(call.forward));
    check(device, grad_heatmaps, "grad_heatmaps", shape, accumulator(call.forward));
    call.forward.heatmaps = heatmaps.mutable_data_ptr();
    call.grad_heatmaps = grad_heatmaps.const_data_ptr();
    Tensor grad_features = wanted(device, features, need_features);
    Tensor grad_gradients = wanted(device, gradients, need_gradients);
    call.grad_features = writable(grad_features);
    call.grad_gradients = writable(grad_gradients);
    device.run(call);
    return {grad_features, grad_gradients};
  }

  static ScalarType accumulator(const Cam& call) {
    return call.features_type == Type::float64 ? ScalarType::Double : ScalarType::Float;
  }

  // The call without its outputs; names: of the tensors, for messages.
  static Cam describe(const Device& device, const Tensor& features, const Tensor& gradients, bool elementwise,
                      const Names& names = {"features", "gradients"}) {
    STD_TORCH_CHECK(features.dim() == 4 && device.holds(features) && features.numel() > 0, names.features,
                    " must be a ", Device::name, " tensor [B, C, H, W] with no empty dimension, got ",
                    described(features));
    Cam call{};
    call.batch = features.size(0);
    call.channels = features.size(1);
    call.positions = features.size(2) * features.size(3);
    device.check_sizes(call.batch, call.channels, features.size(2), features.size(3));
    call.features_type = type_of(features, names.features);
    call.channels_last = !features.is_contiguous();
    STD_TORCH_CHECK(!call.channels_last || is_channels_last(features), names.features,
                    " must be contiguous or channels_last, got ", described(features));
    call.features = features.const_data_ptr();
    describe_gradients(device, features, gradients, elementwise, names, call);
    return call;
  }

 private:
  static void describe_gradients(const Device& device, const Tensor& features, const Tensor& gradients,
                                 bool elementwise, const Names& names, Cam& call) {
    call.gradients_type = type_of(gradients, names.gradients);
    const bool low = call.features_type == Type::bfloat16 || call.features_type == Type::float16;
    STD_TORCH_CHECK(call.gradients_type == call.features_type || (low && call.gradients_type == Type::float32),
                    names.gradients, " must have the dtype of the features, ", name_of(features.scalar_type()),
                    ", or float32 beside bfloat16 and float16, got ", described(gradients));
    if (gradients.dim() == 2) {
      check(device, gradients, names.gradients, {call.batch, call.channels}, gradients.scalar_type());
      call.weighting = Weighting::pooled;
    } else {
      const bool alike = device.holds(gradients) &&
                         has_shape(gradients, {call.batch, call.channels, features.size(2), features.size(3)}) &&
                         (call.channels_last ? is_channels_last(gradients) : gradients.is_contiguous());
      STD_TORCH_CHECK(alike, names.gradients,
                      " must be [B, C], or have shape, memory format and device of the features, ", described(features),
                      ", got ", described(gradients));
      call.weighting = elementwise ? Weighting::elementwise : Weighting::mean;
    }
    call.gradients = gradients.const_data_ptr();
  }
};

}  // namespace cgc
