// Stage cam, what its kernels share. A launch serves views of one memory format: the blocks of a map share its
// channels, `split_channels` each. How many is a function of the call alone, never of the device.
#pragma once

#include <numeric>

#include "platform.cuh"

namespace cgc::CGC_ISA {

constexpr int most_channels = 1024;  // of a block, whose weights lie in shared memory

// Rows, or vectors, that a thread loads at once: elementwise 4 to 8 loads of 16 bytes, which fit its registers.
template <class A, class G, int V, bool elementwise, int pooled>
constexpr int together = elementwise ? (V > 1 && sizeof(G) > sizeof(A) ? 2 : 4) : pooled;

// A contiguous sample is one flat array [C * P]: vectors of v elements meet the same positions again every so many.
inline int flat_period(int positions, int v) { return positions / std::gcd(positions, v); }

// Of either direction; the other's pointers are null.
template <class A, class G>
struct CamCall {
  const A* features[2];              // of each view [B, C, P], in channels_last [B, P, C]
  const G* gradients[2];             // elementwise: as features; else the weights of the channels [B, C]
  acc_t<A>* sums[2];                 // forward: [B, splits, P]; with one split the heatmaps themselves
  const acc_t<A>* grad_heatmaps[2];  // backward: [B, P]; null: `mean` everywhere, which makes sums over positions means
  const acc_t<A>* heatmaps[2];       // backward: [B, P]; null: the gradient has passed the ReLU already
  A* grad_features[2];               // backward: as features, or null
  G* grad_gradients[2];              // backward: as gradients, or null
  bool follows;  // whether the kernel before has written the weights or the gradients of the heatmaps
  int views, batch, channels, positions, splits, split_channels;
  Divisor by_positions;
  acc_t<A> mean;            // 1 / P
  int turn, turn_channels;  // contiguous: vectors that a block takes in one turn, of whole channels; these
  int row_step;             // positions of channels_last that a warp takes at once
};

// One block's share of the work: the blocks of a map lie side by side, one a split.
template <class A, class G>
struct CamPart {
  int view, split, first, channels;  // its channels are [first, first + channels)
  unsigned sample;
  // From its first element on; those that the gradients go to may be null.
  const A* features;
  const G* gradients;
  A* to_features;
  G* to_gradients;
  bool wants_features, wants_gradients;

  // reversed: what the forward read last, and the caches may still hold, comes first. stride: of channels in memory.
  __device__ CamPart(const CamCall<A, G>& call, bool reversed, bool elementwise, int stride) {
    const unsigned number = reversed ? gridDim.x - 1 - blockIdx.x : blockIdx.x, map = number / unsigned(call.splits);
    view = map >= unsigned(call.batch);
    sample = map - (view != 0 ? unsigned(call.batch) : 0u);
    split = int(number - map * unsigned(call.splits));
    first = split * call.split_channels;
    channels = minimum(call.channels - first, call.split_channels);
    const index_t start = rows_before(sample, call.channels * call.positions) + first * stride;
    const index_t weights = elementwise ? start : rows_before(sample, call.channels) + first;
    features = call.features[view] + start, gradients = call.gradients[view] + weights;
    to_features = call.grad_features[view], to_gradients = call.grad_gradients[view];
    wants_features = to_features != nullptr, wants_gradients = to_gradients != nullptr;
    to_features += start, to_gradients += weights;
  }
};

// The gradient before the ReLU of the block's map, [positions], and again from its start for `more` elements.
template <class A, class G, class Acc>
__device__ __forceinline__ void load_gradient(const CamCall<A, G>& call, const CamPart<A, G>& part, int more, Acc* to) {
  const Acc *grad = call.grad_heatmaps[part.view], *heatmap = call.heatmaps[part.view];
  const index_t first = rows_before(part.sample, call.positions);
  each(call.positions + more, [&](int i) {
    const int p = i < call.positions ? i : call.by_positions.remainder(i);
    Acc value = grad == nullptr ? call.mean : simt::gld(grad + first + p);
    if (heatmap != nullptr) value = relu_gradient(simt::gld(heatmap + first + p), value);
    to[i] = value;
  });
}

// to = by * values, if it is wanted.
template <int V, class Acc, class From, class To>
__device__ __forceinline__ void multiply(const Acc (&by)[V], const Pack<From, V>& values, bool wanted, To* to) {
  Acc product[V];
  unrolled<V>([&](int k) { product[k] = by[k] * values.at(k); });
  if (wanted) write<V>(to, product);
}

// ---- What it leaves to the next stage

// What stage cam leaves to the next: sums over the channels of every split.
struct Heatmaps {
  const void* sums[2];  // of each view acc [B, splits, P]; with one split the heatmaps
  void* heatmaps[2];    // acc [B, P], written where there are several
  int splits, positions;
};

// One number of the heatmaps of `views` views; of several splits they are written, too.
template <int views, class Acc>
__device__ __forceinline__ void finish_heatmaps(const Heatmaps& from, index_t sample, int p, Acc (&heatmaps)[views]) {
  constexpr int together = 4;  // loads of a view
  for (Acc& heatmap : heatmaps) heatmap = 0;
#pragma unroll 1
  for (int first = 0; first < from.splits; first += together) {
    Acc parts[views][together];
    unrolled<views * together>([&](int i) {
      const int view = i / together, split = first + i % together;
      const Acc* sums = static_cast<const Acc*>(from.sums[view]) + (sample * from.splits + split) * from.positions + p;
      parts[view][i % together] = split < from.splits ? simt::gld(sums) : Acc(0);
    });
    unrolled<views * together>([&](int i) { heatmaps[i / together] += parts[i / together][i % together]; });
  }
  if (from.splits == 1) return;
  unrolled<views>([&](int view) {
    heatmaps[view] = relu(heatmaps[view]);
    simt::gst(static_cast<Acc*>(from.heatmaps[view]) + sample * from.positions + p, heatmaps[view]);
  });
}

// ---- Launching, in cam.cu

template <class A, class G>
int start_cam(void (*kernel)(CamCall<A, G>), const CamCall<A, G>& call, index_t shared_elements, Stream& stream) {
  const unsigned blocks = unsigned(call.views) * unsigned(call.batch) * unsigned(call.splits);
  return stream.start(kernel, blocks, shared_elements * index_t(sizeof(acc_t<A>)), call);
}

// `views` have one shape, but may differ in their memory format.
Heatmaps launch_cam(const Cam* views, int count, Stream& stream);
int launch_cam_backward(const CamBackward* views, int count, Stream& stream);

}  // namespace cgc::CGC_ISA
