// Launches of stage cam.
#include "cam_flat.cuh"
#include "cam_rows.cuh"

namespace cgc::CGC_ISA {

template <class Acc>
__global__ void __launch_bounds__(block_threads) add_splits(const __grid_constant__ Heatmaps call) {
  simt::wait_for_predecessor();
  simt::release_successor();
  each(call.positions, [&](int p) {
    Acc heatmap[1];
    finish_heatmaps(call, blockIdx.x, p, heatmap);
  });
}

int bytes_of(Type type) { return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2; }
bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

// Enough blocks for a large device, but each streams 1024 bytes a position or more, beside which the traffic of its
// sums is small. A multiple of 64 channels each, which keeps every split aligned.
int split_channels(const Cam& call, int views) {
  const int streamed =
      bytes_of(call.features_type) + (call.weighting == Weighting::elementwise ? bytes_of(call.gradients_type) : 0);
  const index_t least = (call.channels + most_channels - 1) / most_channels;
  const index_t most = maximum(call.channels * streamed / 1024, least);
  const index_t splits = clamp(index_t(4096) / (views * call.batch), least, most);
  return int(round_up((call.channels + splits - 1) / splits, index_t(64)));
}

// Whether vectors of v elements tile the view. Pooled gradients are read and written one by one.
bool is_vectorised(const CamBackward& view, int v, bool backward) {
  const Cam& call = view.forward;
  const bool pooled = call.weighting != Weighting::elementwise;
  if (!aligned(call.features) || !aligned(view.grad_features)) return false;
  if (!pooled && !(aligned(call.gradients) && aligned(view.grad_gradients))) return false;
  if (call.channels_last) return call.channels % v == 0;
  if (backward && pooled && call.positions < v) return false;
  // Odd maps of more than 512 cells, beside gradients of another width.
  const bool odd = flat_period(int(call.positions), v) > 2 * block_threads;
  if (backward && odd && call.features_type != call.gradients_type) return false;
  return call.channels * call.positions % v == 0;
}

template <int V, bool elementwise, class A, class G>
int launch_kernel(CamCall<A, G> call, bool channels_last, bool backward, Stream& stream) {
  if (channels_last && backward) return launch_cam_rows_backward<V, elementwise>(call, stream);
  if (channels_last) return launch_cam_rows<V, elementwise>(call, stream);
  if (backward) return launch_cam_flat_backward<V, elementwise>(call, stream);
  return launch_cam_flat<V, elementwise>(call, stream);
}

// Views of one memory format. follows: as in CamCall.
template <class A, class G>
int launch_alike(const CamBackward* views, int count, int channels, bool backward, bool follows, Stream& stream) {
  using Acc = acc_t<A>;
  constexpr int v = 16 / sizeof(A);
  const Cam& first = views[0].forward;
  CamCall<A, G> call{};
  bool vectorised = true;
  for (int i = 0; i < count; ++i) {
    const CamBackward& view = views[i];
    call.features[i] = static_cast<const A*>(view.forward.features);
    call.gradients[i] = static_cast<const G*>(view.forward.gradients);
    call.heatmaps[i] = call.sums[i] = static_cast<Acc*>(view.forward.heatmaps);
    call.grad_heatmaps[i] = static_cast<const Acc*>(view.grad_heatmaps);
    call.grad_features[i] = static_cast<A*>(view.grad_features);
    call.grad_gradients[i] = static_cast<G*>(view.grad_gradients);
    vectorised = vectorised && is_vectorised(view, v, backward);
  }
  call.follows = follows;
  call.views = count;
  call.batch = int(first.batch);
  call.channels = int(first.channels);
  call.positions = int(first.positions);
  call.split_channels = channels;
  call.splits = ceil_div(call.channels, channels);
  call.by_positions = Divisor(call.positions);
  call.mean = Acc(1) / Acc(call.positions);
  const auto start = [&](auto elementwise) {
    return vectorised ? launch_kernel<v, elementwise>(call, first.channels_last, backward, stream)
                      : launch_kernel<1, elementwise>(call, first.channels_last, backward, stream);
  };
  return first.weighting == Weighting::elementwise ? start(std::true_type{}) : start(std::false_type{});
}

// One launch for both views, or one each where their memory formats differ. Forward the heatmaps are the sums.
int launch_views(const CamBackward* views, int count, bool backward, bool follows, Stream& stream) {
  const bool apart = count == 2 && views[0].forward.channels_last != views[1].forward.channels_last;
  const int channels = split_channels(views[0].forward, count), together = apart ? 1 : count;
  for (int i = 0; i < count; i += together) {
    with_types<bfloat16, float16>(views[i].forward, [&](auto a, auto g, auto) {
      return launch_alike<decltype(a), decltype(g)>(views + i, together, channels, backward, follows, stream);
    });
  }
  return stream.error();
}

// Means of the gradients over positions: the backward of features without a gradient of their own. They become the
// weights of the calls.
void launch_means(CamBackward* calls, int count, Stream& stream) {
  CamBackward means[2];
  for (int i = 0; i < count; ++i) {
    Cam& call = calls[i].forward;
    means[i] = {call, nullptr, nullptr, call.weights};
    Cam& mean = means[i].forward;
    mean.features = call.gradients;
    mean.features_type = call.gradients_type;
    mean.heatmaps = nullptr;  // no ReLU
    call.gradients = mean.gradients = call.weights;
    call.gradients_type = mean.gradients_type = call.features_type == Type::float64 ? Type::float64 : Type::float32;
    call.weighting = mean.weighting = Weighting::pooled;
  }
  launch_views(means, count, true, false, stream);
}

Heatmaps launch_cam(const Cam* views, int count, Stream& stream) {
  const Cam& first = views[0];
  Heatmaps heatmaps{{}, {}, ceil_div(int(first.channels), split_channels(first, count)), int(first.positions)};
  const index_t numbers = first.batch * heatmaps.splits * first.positions;
  CamBackward calls[2] = {{views[0]}, {views[count - 1]}};
  for (int i = 0; i < count; ++i) {
    void*& sums = calls[i].forward.heatmaps;
    heatmaps.heatmaps[i] = sums;
    if (heatmaps.splits > 1) sums = stream.take(numbers * (first.features_type == Type::float64 ? 8 : 4));
    heatmaps.sums[i] = sums;
  }
  const bool means = first.weighting == Weighting::mean;
  if (means) launch_means(calls, count, stream);
  launch_views(calls, count, false, means, stream);
  return heatmaps;
}

int launch_cam_backward(const CamBackward* views, int count, Stream& stream) {
  return launch_views(views, count, true, true, stream);
}

}  // namespace cgc::CGC_ISA

// The heatmaps of one view, finished.
int cgc::launch(const Cam& call, Stream& stream) {
  using namespace CGC_ISA;
  const Heatmaps heatmaps = launch_cam(&call, 1, stream);
  if (heatmaps.splits == 1) return stream.error();
  return with_type(call.features_type == Type::float64, [&](auto acc) {
    return stream.start(&add_splits<decltype(acc)>, unsigned(call.batch), 0, heatmaps);
  });
}
