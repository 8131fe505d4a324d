// Operators of stage resample: heatmaps, transform -> unit rows, keys and positives.
#pragma once

#include <tuple>
#include <vector>

#include "tensors.h"

namespace cgc {

// Five integer tensors [B], the fields of CropFlip; or one of inverse matrices, float64 [B, 3, 3].
using Transform = std::vector<Tensor>;

// Cells of a heatmap each way; pixels of a view each way and what else an operator is told.
struct Maps {
  Index batch, height, width;
  bool float64;
};
struct Settings {
  Index size_h, size_w;
  double eps;
  Index objective;
};

template <class Device>
struct ResampleOperators {
  static std::tuple<Tensor, Tensor, Tensor, Tensor> resample(const Tensor& heatmaps, const Tensor& aug_heatmaps,
                                                             const Transform& transform, Index size_h, Index size_w,
                                                             double eps, Index objective) {
    const Device device(heatmaps);
    Resample call = describe(device, heatmaps, aug_heatmaps, transform, {size_h, size_w, eps, objective});
    const ScalarType type = heatmaps.scalar_type();
    Tensor rows = make(heatmaps, {call.batch, length(call)}, type);
    Tensor keys = make(heatmaps, {call.batch, length(call)}, type);
    Tensor positives = make(heatmaps, {call.batch}, ScalarType::Double);
    Tensor state = make(heatmaps, {call.batch, 3, call.height, call.width}, state_type(call));
    point(call, rows, keys, positives, state);
    device.run(call);
    return {rows, keys, positives, state};
  }

  static std::tuple<Tensor, Tensor> resample_backward(const Tensor& grad_rows, const Tensor& grad_keys,
                                                      const Tensor& grad_positives, const Tensor& heatmaps,
                                                      const Tensor& aug_heatmaps, const Tensor& rows,
                                                      const Tensor& keys, const Tensor& positives,
                                                      const Transform& transform, const Tensor& state, Index size_h,
                                                      Index size_w, double eps, Index objective) {
    const Device device(heatmaps);
    ResampleBackward call{};
    call.forward = describe(device, heatmaps, aug_heatmaps, transform, {size_h, size_w, eps, objective});
    const Resample& forward = call.forward;
    const Shape row_shape = {forward.batch, length(forward)}, batch = {forward.batch};
    const ScalarType type = heatmaps.scalar_type();
    check(device, rows, "rows", row_shape, type);
    check(device, keys, "keys", row_shape, type);
    check(device, positives, "positives", batch, ScalarType::Double);
    check(device, state, "state", {forward.batch, 3, forward.height, forward.width}, state_type(forward));
    check(device, grad_rows, "grad_rows", row_shape, type);
    check(device, grad_keys, "grad_keys", row_shape, type);
    check(device, grad_positives, "grad_positives", batch, ScalarType::Double);
    point(call.forward, rows, keys, positives, state);
    call.grad_rows = grad_rows.const_data_ptr();
    call.grad_keys = grad_keys.const_data_ptr();
    call.grad_positives = doubles(grad_positives);
    Tensor grad_heatmaps = make_like(heatmaps), grad_aug_heatmaps = make_like(aug_heatmaps);
    call.grad_heatmaps = grad_heatmaps.mutable_data_ptr();
    call.grad_aug_heatmaps = grad_aug_heatmaps.mutable_data_ptr();
    device.run(call);
    return {grad_heatmaps, grad_aug_heatmaps};
  }

  // Numbers in a row of a sample.
  static Index length(const Resample& call) { return contrasts(call.objective) ? call.height * call.width : 0; }

  static ScalarType state_type(const Resample& call) {
    return wide_state(call) ? ScalarType::Double : ScalarType::Float;
  }

  // The call without its tensors but for the transform.
  static Resample describe(const Device& device, const Maps& maps, const Transform& transform,
                           const Settings& settings) {
    STD_TORCH_CHECK(settings.objective >= 0 && settings.objective < objectives, "objective must be 0 to ",
                    objectives - 1, ", a place in OBJECTIVES of cgc_kernels/options.py, got ", settings.objective);
    constexpr Index largest = Index(1) << 16;
    STD_TORCH_CHECK(
        settings.size_h >= 1 && settings.size_w >= 1 && settings.size_h <= largest && settings.size_w <= largest,
        "height and width of the view must be 1 to ", largest, " pixels, got ", settings.size_h, " and ",
        settings.size_w);
    device.check_sizes(maps.batch, 1, maps.height, maps.width);
    Resample call{};
    call.batch = maps.batch;
    call.height = maps.height;
    call.width = maps.width;
    call.size_h = settings.size_h;
    call.size_w = settings.size_w;
    call.eps = settings.eps;
    call.objective = Objective(settings.objective);
    call.float64 = maps.float64;
    point_to_transform(device, transform, call);
    return call;
  }

 private:
  static Resample describe(const Device& device, const Tensor& heatmaps, const Tensor& aug_heatmaps,
                           const Transform& transform, const Settings& settings) {
    STD_TORCH_CHECK(heatmaps.dim() == 3 && heatmaps.numel() > 0,
                    "heatmaps must be [B, H, W] with no empty dimension, got ", described(heatmaps));
    const ScalarType type = accumulator_of(heatmaps, "heatmaps");
    const Maps maps = {heatmaps.size(0), heatmaps.size(1), heatmaps.size(2), type == ScalarType::Double};
    check(device, heatmaps, "heatmaps", {maps.batch, maps.height, maps.width}, type);
    check(device, aug_heatmaps, "aug_heatmaps", {maps.batch, maps.height, maps.width}, type);
    Resample call = describe(device, maps, transform, settings);
    call.heatmaps = heatmaps.const_data_ptr();
    call.aug_heatmaps = aug_heatmaps.const_data_ptr();
    return call;
  }

  static void point(Resample& call, const Tensor& rows, const Tensor& keys, const Tensor& positives,
                    const Tensor& state) {
    call.rows = writable(rows);
    call.keys = writable(keys);
    call.positives = doubles(positives);
    call.state = state.mutable_data_ptr();
  }

  static void point_to_transform(const Device& device, const Transform& transform, Resample& call) {
    STD_TORCH_CHECK(transform.size() == crop_fields || transform.size() == 1,
                    "transform must be the five fields of a CropFlip or one tensor of matrices, got ", transform.size(),
                    " tensors");
    if (transform.size() == 1) {
      check(device, transform[0], "transform", {call.batch, 3, 3}, ScalarType::Double);
      call.inverses = static_cast<const double*>(transform[0].const_data_ptr());
      return;
    }
    for (int field = 0; field < crop_fields; ++field) {
      const Tensor& given = transform[field];
      STD_TORCH_CHECK(has_shape(given, {call.batch}) && device.holds(given), "transform[", field, "] must be a ",
                      Device::name, " tensor [", call.batch, "], got ", described(given));
      call.crops[field] = {given.const_data_ptr(), given.stride(0), integer_of(given, field)};
    }
  }

  static Integer integer_of(const Tensor& tensor, int field) {
    switch (tensor.scalar_type()) {
      case ScalarType::Byte:
        return Integer::uint8;
      case ScalarType::Char:
        return Integer::int8;
      case ScalarType::Short:
        return Integer::int16;
      case ScalarType::Int:
        return Integer::int32;
      case ScalarType::Long:
        return Integer::int64;
      case ScalarType::Bool:
        return Integer::boolean;
      default:
        STD_TORCH_CHECK(false, "transform[", field, "] must be an integer or bool tensor, got ", described(tensor));
    }
    return Integer::int64;
  }
};

}  // namespace cgc
