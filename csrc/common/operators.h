// The operators, the same for every device: tensors to plain structures, outputs and gradients, one run of a kernel.
// Schemas, fake kernels and autograd are in cgc_kernels/ops; what the Python side cannot have checked is checked here.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <tuple>

#include "calls.h"

namespace cgc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Index = std::int64_t;

// A Device has
//   name                        as messages spell it
//   Scope(tensor)               makes the tensor's device the current one while it lives
//   holds(tensor)               whether it lies there
//   check_map(height, width)    refuses maps that the kernels do not take
//   prepare(gradient)           before a large gradient is written
//   run(call, like)             runs a call's kernel; `like` is a tensor of the device, for workspaces
//   run(call, loss, like)       the same of a call with a loss
template <class Device>
struct Operators {
  static Type type_of(const Tensor& tensor, const char* name) {
    switch (tensor.scalar_type()) {
      case ScalarType::Float:
        return Type::float32;
      case ScalarType::Double:
        return Type::float64;
      case ScalarType::BFloat16:
        return Type::bfloat16;
      case ScalarType::Half:
        return Type::float16;
      default:
        STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
    }
    return Type::float32;
  }

  static void check(const Tensor& tensor, const char* name, std::initializer_list<Index> shape) {
    bool same = tensor.dim() == Index(shape.size());
    Index dimension = 0;
    for (const Index size : shape) same = same && tensor.size(dimension++) == size;
    STD_TORCH_CHECK(same, name, " must have the shape that the other arguments imply");
    STD_TORCH_CHECK(Device::holds(tensor) && tensor.is_contiguous(), name, " must be a contiguous ", Device::name,
                    " tensor");
  }

  static void check(const Tensor& tensor, const char* name, std::initializer_list<Index> shape, ScalarType type) {
    check(tensor, name, shape);
    STD_TORCH_CHECK(tensor.scalar_type() == type, name, " must have the dtype that the other arguments imply");
  }

  // As torch sees it: the stride of a dimension of length 1 means nothing.
  static bool is_channels_last(const Tensor& tensor) {
    Index expected = 1;
    for (const Index dimension : {1, 3, 2, 0}) {
      if (tensor.size(dimension) != 1 && tensor.stride(dimension) != expected) return false;
      expected *= tensor.size(dimension);
    }
    return true;
  }

  static ScalarType accumulator(const Tensor& features) {
    return features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  static Tensor make(const Tensor& like, std::initializer_list<Index> shape, ScalarType type) {
    return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
  }

  // An uninitialised gradient for `tensor`; empty where none is asked for.
  static Tensor wanted(const Tensor& tensor, bool needed) {
    if (!needed) return make(tensor, {0}, tensor.scalar_type());
    Tensor gradient = torch::stable::empty_like(tensor);
    Device::prepare(gradient);
    return gradient;
  }

  static void* writable(const Tensor& tensor) { return tensor.numel() == 0 ? nullptr : tensor.mutable_data_ptr(); }

  static Cam describe(const Tensor& features, const Tensor& gradients, bool elementwise) {
    STD_TORCH_CHECK(features.dim() == 4 && Device::holds(features) && features.numel() > 0, "features must be a ",
                    Device::name, " tensor [B, C, H, W] with no empty dimension");
    Device::check_map(features.size(2), features.size(3));
    Cam call{};
    call.batch = features.size(0);
    call.channels = features.size(1);
    call.positions = features.size(2) * features.size(3);
    call.features_type = type_of(features, "features");
    call.gradients_type = type_of(gradients, "gradients");
    call.channels_last = !features.is_contiguous();
    STD_TORCH_CHECK(!call.channels_last || is_channels_last(features), "features must be contiguous or channels_last");
    const bool low = call.features_type == Type::bfloat16 || call.features_type == Type::float16;
    STD_TORCH_CHECK(call.gradients_type == call.features_type || (low && call.gradients_type == Type::float32),
                    "gradients must have the features' dtype, or float32 beside bfloat16 and float16");
    if (gradients.dim() == 2) {
      check(gradients, "gradients", {call.batch, call.channels});
      call.weighting = Weighting::pooled;
    } else {
      const bool like = gradients.dim() == 4 && Device::holds(gradients) && gradients.size(0) == call.batch &&
                        gradients.size(1) == call.channels && gradients.size(2) == features.size(2) &&
                        gradients.size(3) == features.size(3) &&
                        (call.channels_last ? is_channels_last(gradients) : gradients.is_contiguous());
      STD_TORCH_CHECK(like, "gradients must have the shape and memory format of the features, or be [B, C]");
      call.weighting = elementwise ? Weighting::elementwise : Weighting::mean;
    }
    call.features = features.const_data_ptr();
    call.gradients = gradients.const_data_ptr();
    return call;
  }

  // Both views must share shape and types: the kernels take them from the first.
  static void check_alike(const Tensor& features, const Tensor& aug_features, const Cam& view, const Cam& aug_view) {
    bool same = view.features_type == aug_view.features_type && view.gradients_type == aug_view.gradients_type &&
                view.weighting == aug_view.weighting;
    for (Index dimension = 0; dimension < 4; ++dimension) {
      same = same && features.size(dimension) == aug_features.size(dimension);
    }
    STD_TORCH_CHECK(same, "aug_features and aug_gradients must have the shapes and dtypes of features and gradients");
  }

  static Resample describe(Index batch, Index height, Index width, bool float64, const Tensor& transform, Index size_h,
                           Index size_w, double eps, Index objective) {
    Resample call{};
    call.batch = batch;
    call.height = height;
    call.width = width;
    call.size_h = size_h;
    call.size_w = size_w;
    call.eps = eps;
    call.objective = Objective(objective);
    call.float64 = float64;
    Device::check_map(height, width);
    STD_TORCH_CHECK(objective >= 0 && objective <= 2, "objective must be 0 (released), 1 (paper) or 2 (mse)");
    constexpr Index largest = Index(1) << 16;
    STD_TORCH_CHECK(size_h >= 1 && size_w >= 1 && size_h <= largest && size_w <= largest,
                    "height and width of the view must be 1 to 65536 pixels");
    if (transform.dim() == 2) {
      check(transform, "transform", {batch, 5}, ScalarType::Long);
      call.crops = static_cast<const Index*>(transform.const_data_ptr());
    } else {
      check(transform, "transform", {batch, 3, 3}, ScalarType::Double);
      call.inverses = static_cast<const double*>(transform.const_data_ptr());
    }
    return call;
  }

  static double* doubles(const Tensor& tensor) { return static_cast<double*>(tensor.mutable_data_ptr()); }

  // Scalars are read and written by the kernels.
  static Scalar scalar(const Tensor& tensor) {
    const ScalarType type = tensor.scalar_type();
    STD_TORCH_CHECK(
        Device::holds(tensor) && tensor.numel() == 1 && (type == ScalarType::Float || type == ScalarType::Double),
        "grad_loss must be one float32 or float64 number on the ", Device::name);
    return {tensor.mutable_data_ptr(), type == ScalarType::Double};
  }

  static std::tuple<Tensor, Tensor> cam(const Tensor& features, const Tensor& gradients, bool elementwise) {
    const typename Device::Scope scope(features);
    Cam call = describe(features, gradients, elementwise);
    const ScalarType type = accumulator(features);
    Tensor heatmaps = make(features, {call.batch, features.size(2), features.size(3)}, type);
    Tensor weights = call.weighting == Weighting::mean ? make(features, {call.batch, call.channels}, type)
                                                       : make(features, {0}, type);
    call.heatmaps = writable(heatmaps);
    call.weights = writable(weights);
    Device::run(call, features);
    return {heatmaps, weights};
  }

  static std::tuple<Tensor, Tensor> cam_backward(const Tensor& grad_heatmaps, const Tensor& heatmaps,
                                                 const Tensor& features, const Tensor& gradients, bool need_features,
                                                 bool need_gradients) {
    const typename Device::Scope scope(features);
    CamBackward call{};
    call.forward = describe(features, gradients, true);
    const ScalarType type = accumulator(features);
    check(heatmaps, "heatmaps", {call.forward.batch, features.size(2), features.size(3)}, type);
    check(grad_heatmaps, "grad_heatmaps", {call.forward.batch, features.size(2), features.size(3)}, type);
    call.forward.heatmaps = heatmaps.mutable_data_ptr();
    call.grad_heatmaps = grad_heatmaps.const_data_ptr();
    Tensor grad_features = wanted(features, need_features), grad_gradients = wanted(gradients, need_gradients);
    call.grad_features = writable(grad_features);
    call.grad_gradients = writable(grad_gradients);
    Device::run(call, features);
    return {grad_features, grad_gradients};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> resample(const Tensor& heatmaps, const Tensor& aug_heatmaps,
                                                             const Tensor& transform, Index size_h, Index size_w,
                                                             double eps, Index objective) {
    const typename Device::Scope scope(heatmaps);
    STD_TORCH_CHECK(heatmaps.dim() == 3 && heatmaps.numel() > 0, "heatmaps must be [B, H, W] with no empty dimension");
    const ScalarType type = heatmaps.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "heatmaps must be float32 or float64");
    const Index batch = heatmaps.size(0), height = heatmaps.size(1), width = heatmaps.size(2);
    check(heatmaps, "heatmaps", {batch, height, width});
    check(aug_heatmaps, "aug_heatmaps", {batch, height, width}, type);
    Resample call =
        describe(batch, height, width, type == ScalarType::Double, transform, size_h, size_w, eps, objective);
    const Index length = call.objective == Objective::mse ? 0 : height * width;
    Tensor rows = make(heatmaps, {batch, length}, type), keys = make(heatmaps, {batch, length}, type);
    Tensor positives = make(heatmaps, {batch}, ScalarType::Double);
    Tensor state = make(heatmaps, {batch, 3, height, width}, ScalarType::Double);
    call.heatmaps = heatmaps.const_data_ptr();
    call.aug_heatmaps = aug_heatmaps.const_data_ptr();
    call.rows = writable(rows);
    call.keys = writable(keys);
    call.positives = doubles(positives);
    call.state = doubles(state);
    Device::run(call, heatmaps);
    return {rows, keys, positives, state};
  }

  static std::tuple<Tensor, Tensor> resample_backward(const Tensor& grad_rows, const Tensor& grad_keys,
                                                      const Tensor& grad_positives, const Tensor& heatmaps,
                                                      const Tensor& aug_heatmaps, const Tensor& transform,
                                                      const Tensor& state, Index size_h, Index size_w, double eps,
                                                      Index objective) {
    const typename Device::Scope scope(heatmaps);
    STD_TORCH_CHECK(heatmaps.dim() == 3 && heatmaps.numel() > 0, "heatmaps must be [B, H, W] with no empty dimension");
    const Index batch = heatmaps.size(0), height = heatmaps.size(1), width = heatmaps.size(2);
    const ScalarType type = heatmaps.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "heatmaps must be float32 or float64");
    ResampleBackward call{};
    call.forward =
        describe(batch, height, width, type == ScalarType::Double, transform, size_h, size_w, eps, objective);
    const Index length = call.forward.objective == Objective::mse ? 0 : height * width;
    check(heatmaps, "heatmaps", {batch, height, width});
    check(aug_heatmaps, "aug_heatmaps", {batch, height, width}, type);
    check(grad_rows, "grad_rows", {batch, length}, type);
    check(grad_keys, "grad_keys", {batch, length}, type);
    check(grad_positives, "grad_positives", {batch}, ScalarType::Double);
    check(state, "state", {batch, 3, height, width}, ScalarType::Double);
    call.forward.heatmaps = heatmaps.const_data_ptr();
    call.forward.aug_heatmaps = aug_heatmaps.const_data_ptr();
    call.forward.state = doubles(state);
    call.grad_rows = grad_rows.const_data_ptr();
    call.grad_keys = grad_keys.const_data_ptr();
    call.grad_positives = doubles(grad_positives);
    Tensor grad_heatmaps = torch::stable::empty_like(heatmaps), grad_aug = torch::stable::empty_like(aug_heatmaps);
    call.grad_heatmaps = grad_heatmaps.mutable_data_ptr();
    call.grad_aug_heatmaps = grad_aug.mutable_data_ptr();
    Device::run(call, heatmaps);
    return {grad_heatmaps, grad_aug};
  }

  static Contrast describe(const Tensor& rows, const Tensor& keys, const Tensor& positives, const Tensor& row_losses,
                           double temperature) {
    STD_TORCH_CHECK(rows.dim() == 2 && rows.size(0) > 0, "rows must be [B, N] with B > 0");
    const ScalarType type = rows.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "rows must be float32 or float64");
    const Index batch = rows.size(0), length = rows.size(1);
    check(rows, "rows", {batch, length});
    check(keys, "keys", {batch, length}, type);
    check(positives, "positives", {batch}, ScalarType::Double);
    check(row_losses, "row_losses", {batch}, ScalarType::Double);
    return {batch,
            length,
            temperature,
            type == ScalarType::Double,
            rows.const_data_ptr(),
            keys.const_data_ptr(),
            doubles(positives),
            doubles(row_losses)};
  }

  static std::tuple<Tensor, Tensor> contrast(const Tensor& rows, const Tensor& keys, const Tensor& positives,
                                             double temperature) {
    const typename Device::Scope scope(rows);
    STD_TORCH_CHECK(rows.dim() == 2, "rows must be [B, N]");
    Tensor row_losses = make(rows, {rows.size(0)}, ScalarType::Double), loss = make(rows, {}, rows.scalar_type());
    Device::run(describe(rows, keys, positives, row_losses, temperature), scalar(loss), rows);
    return {loss, row_losses};
  }

  static std::tuple<Tensor, Tensor, Tensor> contrast_backward(const Tensor& grad_loss, const Tensor& rows,
                                                              const Tensor& keys, const Tensor& positives,
                                                              const Tensor& row_losses, double temperature) {
    const typename Device::Scope scope(rows);
    Tensor grad_rows = torch::stable::empty_like(rows), grad_keys = torch::stable::empty_like(keys);
    Tensor grad_positives = torch::stable::empty_like(positives);
    const ContrastBackward call{describe(rows, keys, positives, row_losses, temperature), scalar(grad_loss),
                                grad_rows.mutable_data_ptr(), grad_keys.mutable_data_ptr(), doubles(grad_positives)};
    Device::run(call, rows);
    return {grad_rows, grad_keys, grad_positives};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> cgc(
      const Tensor& features, const Tensor& gradients, const Tensor& aug_features, const Tensor& aug_gradients,
      const Tensor& transform, Index size_h, Index size_w, double temperature, bool elementwise, Index objective,
      double consistency, double eps) {
    const typename Device::Scope scope(features);
    Cgc call{};
    call.views[0] = describe(features, gradients, elementwise);
    call.views[1] = describe(aug_features, aug_gradients, elementwise);
    check_alike(features, aug_features, call.views[0], call.views[1]);
    const Index batch = call.views[0].batch, channels = call.views[0].channels, positions = call.views[0].positions;
    const Index height = features.size(2), width = features.size(3);
    const ScalarType type = accumulator(features);
    const bool float64 = type == ScalarType::Double;
    const bool saves_weights = call.views[0].weighting == Weighting::mean;
    Tensor heatmaps = make(features, {2, batch, height, width}, type), loss = make(features, {}, type);
    Tensor weights = saves_weights ? make(features, {2, batch, channels}, type) : make(features, {2, 0}, type);
    for (Index view = 0; view < 2; ++view) {
      const Index item = float64 ? 8 : 4;
      call.views[view].heatmaps = static_cast<char*>(heatmaps.mutable_data_ptr()) + view * batch * positions * item;
      if (saves_weights) {
        call.views[view].weights = static_cast<char*>(weights.mutable_data_ptr()) + view * batch * channels * item;
      }
    }
    call.resample = describe(batch, height, width, float64, transform, size_h, size_w, eps, objective);
    const Index length = call.resample.objective == Objective::mse ? 0 : positions;
    Tensor rows = make(features, {batch, length}, type), keys = make(features, {batch, length}, type);
    Tensor positives = make(features, {batch}, ScalarType::Double);
    Tensor row_losses = make(features, {batch}, ScalarType::Double);
    Tensor state = make(features, {batch, 3, height, width}, ScalarType::Double);
    call.resample.heatmaps = call.views[0].heatmaps;
    call.resample.aug_heatmaps = call.views[1].heatmaps;
    call.resample.rows = writable(rows);
    call.resample.keys = writable(keys);
    call.resample.positives = doubles(positives);
    call.resample.state = doubles(state);
    call.contrast = describe(rows, keys, positives, row_losses, temperature);
    call.consistency = consistency;
    Device::run(call, scalar(loss), features);
    return {loss, heatmaps, weights, rows, keys, positives, row_losses, state};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> cgc_backward(
      const Tensor& grad_loss, const Tensor& features, const Tensor& gradients, const Tensor& aug_features,
      const Tensor& aug_gradients, const Tensor& transform, const Tensor& heatmaps, const Tensor& rows,
      const Tensor& keys, const Tensor& positives, const Tensor& row_losses, const Tensor& state, Index size_h,
      Index size_w, double temperature, bool, Index objective, double consistency, double eps, Index needs) {
    const typename Device::Scope scope(features);
    CgcBackward call{};
    const Tensor* inputs[4] = {&features, &gradients, &aug_features, &aug_gradients};
    Tensor grads[4];
    for (Index i = 0; i < 4; ++i) grads[i] = wanted(*inputs[i], (needs >> i & 1) != 0);
    STD_TORCH_CHECK(features.dim() == 4, "features must be [B, C, H, W]");
    const Index batch = features.size(0), height = features.size(2), width = features.size(3);
    const ScalarType type = accumulator(features);
    const bool float64 = type == ScalarType::Double;
    check(heatmaps, "heatmaps", {2, batch, height, width}, type);
    check(state, "state", {batch, 3, height, width}, ScalarType::Double);
    for (Index view = 0; view < 2; ++view) {
      CamBackward& cam = call.views[view];
      cam.forward = describe(*inputs[2 * view], *inputs[2 * view + 1], true);
      cam.forward.heatmaps =
          static_cast<char*>(heatmaps.mutable_data_ptr()) + view * batch * height * width * (float64 ? 8 : 4);
      cam.grad_features = writable(grads[2 * view]);
      cam.grad_gradients = writable(grads[2 * view + 1]);
    }
    check_alike(features, aug_features, call.views[0].forward, call.views[1].forward);
    const Index length = Objective(objective) == Objective::mse ? 0 : height * width;
    check(rows, "rows", {batch, length}, type);
    check(keys, "keys", {batch, length}, type);
    Tensor grad_rows = torch::stable::empty_like(rows), grad_keys = torch::stable::empty_like(keys);
    Tensor grad_positives = torch::stable::empty_like(positives);
    call.contrast = {describe(rows, keys, positives, row_losses, temperature), scalar(grad_loss), writable(grad_rows),
                     writable(grad_keys), doubles(grad_positives)};
    Resample& resample = call.resample.forward;
    resample = describe(batch, height, width, float64, transform, size_h, size_w, eps, objective);
    resample.heatmaps = call.views[0].forward.heatmaps;
    resample.aug_heatmaps = call.views[1].forward.heatmaps;
    resample.positives = doubles(positives);
    resample.state = doubles(state);
    call.resample.grad_rows = writable(grad_rows);
    call.resample.grad_keys = writable(grad_keys);
    call.resample.grad_positives = doubles(grad_positives);
    call.consistency = consistency;
    Device::run(call, features);
    return {grads[0], grads[1], grads[2], grads[3]};
  }

  // Registers all of them, inside STABLE_TORCH_LIBRARY_IMPL(cgc_kernels, <key>, m).
  template <class Library>
  static void implement(Library& m) {
    m.impl("cam", TORCH_BOX(&Operators::cam));
    m.impl("cam_backward", TORCH_BOX(&Operators::cam_backward));
    m.impl("resample", TORCH_BOX(&Operators::resample));
    m.impl("resample_backward", TORCH_BOX(&Operators::resample_backward));
    m.impl("contrast", TORCH_BOX(&Operators::contrast));
    m.impl("contrast_backward", TORCH_BOX(&Operators::contrast_backward));
    m.impl("cgc", TORCH_BOX(&Operators::cgc));
    m.impl("cgc_backward", TORCH_BOX(&Operators::cgc_backward));
  }
};

}  // namespace cgc
