// Operators of the three stages fused. What the backward needs beside the inputs is one buffer of bytes, `saved`.
#pragma once

#include "cam.h"
#include "contrast.h"
#include "resample.h"

namespace cgc {

// Where the parts of `saved` begin, in bytes: no padding, those of 8 bytes an element first, so that each is aligned.
// The same in cgc_kernels/ops/cgc.py.
struct SavedLayout {
  SavedLayout(const Cam& view, const Resample& resample, bool saves_weights) {
    const Index item = resample.float64 ? 8 : 4, mapped = view.batch * view.positions * item;
    const Index row = contrasts(resample.objective) ? mapped : 0;
    view_weights = saves_weights ? view.batch * view.channels * item : 0;
    view_heatmaps = mapped;
    row_losses = positives + 8 * view.batch;
    weights = row_losses + 8 * view.batch;
    heatmaps = weights + 2 * view_weights;
    rows = heatmaps + 2 * view_heatmaps;
    keys = rows + row;
    state = keys + row;
    bytes = state + 3 * (wide_state(resample) ? 8 * view.batch * view.positions : mapped);
  }

  Index positives = 0, row_losses, weights, heatmaps, rows, keys, state, bytes;
  Index view_weights, view_heatmaps;  // bytes of one view's
};

template <class Device>
struct CgcOperators {
  using Cams = CamOperators<Device>;
  using Resamples = ResampleOperators<Device>;

  static std::tuple<Tensor, Tensor> cgc(const Tensor& features, const Tensor& gradients, const Tensor& aug_features,
                                        const Tensor& aug_gradients, const Transform& transform, Index size_h,
                                        Index size_w, double temperature, bool elementwise, Index objective,
                                        double consistency, double eps) {
    const Device device(features);
    Cgc call{};
    call.views[0] = Cams::describe(device, features, gradients, elementwise);
    call.views[1] = Cams::describe(device, aug_features, aug_gradients, elementwise, aug_names);
    check_alike(call.views, features, aug_features, aug_gradients);
    call.resample = describe(device, call.views[0], features, transform, {size_h, size_w, eps, objective});
    call.consistency = consistency;
    const SavedLayout layout(call.views[0], call.resample, call.views[0].weighting == Weighting::mean);
    Tensor loss = make(features, {}, Cams::accumulator(call.views[0]));
    Tensor saved = make(features, {layout.bytes}, ScalarType::Byte);
    char* data = static_cast<char*>(saved.mutable_data_ptr());
    for (int view = 0; view < 2; ++view) {
      point(layout, data, view, call.views[view]);
      if (layout.view_weights > 0) call.views[view].weights = data + layout.weights + view * layout.view_weights;
    }
    point(layout, data, call.resample);
    call.contrast = contrast(layout, data, call.resample, temperature);
    device.run(call, scalar(device, loss, "loss"));
    return {loss, saved};
  }

  // gradients, aug_gradients: the weights, [B, C], where these were saved.
  static std::tuple<Tensor, Tensor, Tensor, Tensor> cgc_backward(
      const Tensor& grad_loss, const Tensor& features, const Tensor& gradients, const Tensor& aug_features,
      const Tensor& aug_gradients, const Transform& transform, const Tensor& saved, Index size_h, Index size_w,
      double temperature, bool, Index objective, double consistency, double eps, Index needs) {
    const Device device(features);
    CgcBackward call{};
    const Cam views[2] = {Cams::describe(device, features, gradients, true),
                          Cams::describe(device, aug_features, aug_gradients, true, aug_names)};
    check_alike(views, features, aug_features, aug_gradients);
    Resample& forward = call.resample.forward;
    forward = describe(device, views[0], features, transform, {size_h, size_w, eps, objective});
    const SavedLayout layout = layout_of(device, saved, views[0], forward);
    char* data = static_cast<char*>(saved.mutable_data_ptr());
    const Tensor grads[4] = {wanted(device, features, (needs & 1) != 0), wanted(device, gradients, (needs & 2) != 0),
                             wanted(device, aug_features, (needs & 4) != 0),
                             wanted(device, aug_gradients, (needs & 8) != 0)};
    for (int view = 0; view < 2; ++view) {
      CamBackward& cam = call.views[view];
      cam.forward = views[view];
      point(layout, data, view, cam.forward);
      cam.grad_features = writable(grads[2 * view]);
      cam.grad_gradients = writable(grads[2 * view + 1]);
    }
    point(layout, data, forward);
    call.contrast.forward = contrast(layout, data, forward, temperature);
    call.contrast.grad_loss = scalar(device, grad_loss, "grad_loss");
    call.consistency = consistency;
    device.run(call);
    return {grads[0], grads[1], grads[2], grads[3]};
  }

 private:
  static constexpr typename Cams::Names aug_names = {"aug_features", "aug_gradients"};

  // The kernels take what both views share from the first.
  static void check_alike(const Cam (&views)[2], const Tensor& features, const Tensor& aug_features,
                          const Tensor& aug_gradients) {
    const bool same =
        has_shape(aug_features, {features.size(0), features.size(1), features.size(2), features.size(3)}) &&
        views[0].features_type == views[1].features_type && views[0].gradients_type == views[1].gradients_type &&
        views[0].weighting == views[1].weighting;
    STD_TORCH_CHECK(same, "aug_features and aug_gradients must have the shapes and dtypes of features, ",
                    described(features), ", and gradients, got ", described(aug_features), " and ",
                    described(aug_gradients));
  }

  static Resample describe(const Device& device, const Cam& view, const Tensor& features, const Transform& transform,
                           const Settings& settings) {
    const Maps maps = {view.batch, features.size(2), features.size(3), view.features_type == Type::float64};
    return Resamples::describe(device, maps, transform, settings);
  }

  // The length tells whether weights were saved; they come back as pooled gradients.
  static SavedLayout layout_of(const Device& device, const Tensor& saved, const Cam& view, const Resample& resample) {
    const SavedLayout with(view, resample, true), without(view, resample, false);
    const bool pooled = view.weighting == Weighting::pooled && saved.numel() == with.bytes;
    const SavedLayout& layout = pooled ? with : without;
    check(device, saved, "saved", {layout.bytes}, ScalarType::Byte);
    return layout;
  }

  static void point(const SavedLayout& layout, char* data, int view, Cam& cam) {
    cam.heatmaps = data + layout.heatmaps + view * layout.view_heatmaps;
  }

  static void point(const SavedLayout& layout, char* data, Resample& resample) {
    resample.heatmaps = data + layout.heatmaps;
    resample.aug_heatmaps = data + layout.heatmaps + layout.view_heatmaps;
    resample.rows = data + layout.rows;
    resample.keys = data + layout.keys;
    resample.positives = reinterpret_cast<double*>(data + layout.positives);
    resample.state = data + layout.state;
  }

  static Contrast contrast(const SavedLayout& layout, char* data, const Resample& resample, double temperature) {
    return {resample.batch,
            Resamples::length(resample),
            0,
            resample.batch,
            temperature,
            resample.float64,
            resample.rows,
            resample.keys,
            resample.positives,
            reinterpret_cast<double*>(data + layout.row_losses)};
  }
};

}  // namespace cgc
