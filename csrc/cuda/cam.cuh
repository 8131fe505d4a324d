// Stage cam: heatmaps ReLU(sum_c weight_c A_c), features and gradients each read once, and its backward, each gradient
// written once. A block takes a split of the channels of one sample, at most 1024 of them.
#pragma once

#include "walk.cuh"

#include "../common/dispatch.h"

namespace cgc::CGC_ISA {

// How the channels of a sample are dealt out to blocks; a function of the call alone, never of the device.
struct CamPlan {
  int splits, split_channels;  // the latter a multiple of 64, which keeps every split aligned
  bool vectorised;             // 16-byte accesses
};

struct CamPhase {
  Cam views[2];
  int view_count;
  CamPlan plan;
  void* partials;  // acc [views, B, splits, P]; unused with one split
};

struct CamBackwardPhase {
  CamBackward views[2];
  int view_count;
  CamPlan plan;
};

// ---- Forward

template <class A, class G, class Acc, int V>
__device__ __forceinline__ void cam_chunk(const Cam& call, const Chunk<Acc, V>& chunk, const A* features,
                                          const G* gradients, Acc* weights) {
  if (call.weighting == Weighting::elementwise) {
    const auto product = [&](index_t at, Acc(&sums)[V]) {
      const Pack<A, V> a = read<V>(features + at);
      const Pack<G, V> g = read<V>(gradients + at);
#pragma unroll
      for (int k = 0; k < V; ++k) sums[k] += Acc(load(a.value[k])) * Acc(load(g.value[k]));
    };
    if (!call.channels_last) {
      add_flat(chunk, [&](int at, const Cursor&, Acc(&sums)[V]) { product(at, sums); });
    } else {
      add_rows(chunk, [&](index_t row, int channel) {
        Acc sums[V] = {}, sum = 0;
        product(row + channel, sums);
#pragma unroll
        for (int k = 0; k < V; ++k) sum += sums[k];
        return sum;
      });
    }
    return;
  }
  if (call.weighting == Weighting::pooled) {
    each(chunk.channels, [&](int c) { chunk.weight(c) = load(simt::gld(gradients + c)); });
  } else {
    const auto emit = [&](int channel, Acc sum) {
      const Acc mean = sum / Acc(chunk.positions);
      chunk.weight(channel) = mean;
      simt::gst(weights + channel, mean);
    };
    if (call.channels_last) {
      sum_columns(chunk, gradients, false, emit);
    } else {
      sum_flat(chunk, gradients, false, emit);
    }
  }
  __syncthreads();
  if (!call.channels_last) {
    add_flat(chunk, [&](int at, Cursor cursor, Acc(&sums)[V]) {
      const Pack<A, V> a = read<V>(features + at);
#pragma unroll
      for (int k = 0; k < V; ++k, cursor.next()) sums[k] += chunk.weight(cursor.channel) * Acc(load(a.value[k]));
    });
  } else {
    add_rows(chunk, [&](index_t row, int channel) {
      const Pack<A, V> a = read<V>(features + row + channel);
      Acc sum = 0;
#pragma unroll
      for (int k = 0; k < V; ++k) sum += chunk.weight(channel + k) * Acc(load(a.value[k]));
      return sum;
    });
  }
}

// Where a split's elements begin: of the features and 4-D gradients, and of [B, C] tensors.
struct SplitOffsets {
  __device__ __forceinline__ SplitOffsets(const Cam& call, int sample, int channel)
      : map(index_t(sample) * call.channels * call.positions +
            (call.channels_last ? channel : channel * call.positions)),
        pooled(index_t(sample) * call.channels + channel) {}
  index_t map, pooled;
};

// Calls visit(view, sample, split) for every part of the work that falls to this block.
template <class F>
__device__ __forceinline__ void each_split(index_t batch, int views, int splits, F&& visit) {
  const int samples = int(batch);
#pragma unroll 1
  for (int item = int(blockIdx.x); item < samples * views * splits; item += int(gridDim.x)) {
    const int whole = item / splits, view = whole / samples;
    visit(view, whole - view * samples, item - whole * splits);
  }
}

template <class A, class G, class Acc, int V>
__device__ __forceinline__ void cam_split(const CamPhase& phase, int view, int sample, int split) {
  const Cam& call = phase.views[view];
  const int positions = int(call.positions), splits = phase.plan.splits;
  const CamShared<Acc> shared = cam_shared<Acc>(positions);
  each(positions, [&](int p) { shared.map(p) = 0; });
  __syncthreads();
  const int first = split * phase.plan.split_channels;
  const SplitOffsets offsets(call, sample, first);
  const int channels = minimum(int(call.channels) - first, phase.plan.split_channels);
  const Chunk<Acc, V> chunk{positions, channels, int(call.channels), shared};
  const bool pooled = call.weighting == Weighting::pooled;
  cam_chunk<A, G, Acc, V>(call, chunk, static_cast<const A*>(call.features) + offsets.map,
                          static_cast<const G*>(call.gradients) + (pooled ? offsets.pooled : offsets.map),
                          static_cast<Acc*>(call.weights) + (call.weights == nullptr ? 0 : offsets.pooled));
  Acc* partial = static_cast<Acc*>(phase.partials) + ((view * call.batch + sample) * splits + split) * positions;
  Acc* heatmap = static_cast<Acc*>(call.heatmaps) + index_t(sample) * positions;
  each(positions, [&](int p) {
    if (splits == 1) {
      simt::gst(heatmap + p, relu(shared.map(p)));
    } else {
      simt::gst(partial + p, shared.map(p));
    }
  });
  __syncthreads();
}

// Calls visit with values of the types of the call, as far as they go with the accumulator.
template <class Acc, class F>
__device__ __forceinline__ void with_views(const Cam& call, F&& visit) {
  if constexpr (sizeof(Acc) == sizeof(double)) {
    visit(double{}, double{});
  } else {
    with_narrow_types<bfloat16, float16>(call, [&](auto a, auto g, auto) { visit(a, g); });
  }
}

template <class Acc>
__device__ __forceinline__ void cam_phase(const CamPhase& phase) {
  with_views<Acc>(phase.views[0], [&](auto a, auto g) {
    using A = decltype(a);
    using G = decltype(g);
    each_split(phase.views[0].batch, phase.view_count, phase.plan.splits, [&](int view, int sample, int split) {
      if (phase.plan.vectorised) {
        cam_split<A, G, Acc, 16 / sizeof(A)>(phase, view, sample, split);
      } else {
        cam_split<A, G, Acc, 1>(phase, view, sample, split);
      }
    });
  });
}

// The heatmap of one sample from the sums of its splits; thread p % 256 writes position p.
template <class Acc>
__device__ __forceinline__ void finish_heatmap(const CamPhase& phase, int view, int sample) {
  const Cam& call = phase.views[view];
  const int positions = int(call.positions), splits = phase.plan.splits;
  const Acc* partial = static_cast<const Acc*>(phase.partials) + (view * call.batch + sample) * splits * positions;
  Acc* heatmap = static_cast<Acc*>(call.heatmaps) + index_t(sample) * positions;
  each(positions, [&](int p) {
    Acc sum = 0;
#pragma unroll 1
    for (int split = 0; split < splits; ++split) sum += simt::gld(partial + split * positions + p);
    simt::gst(heatmap + p, relu(sum));
  });
}

template <class Acc>
__device__ __forceinline__ void finish_phase(const CamPhase& phase) {
  each_split(phase.views[0].batch, phase.view_count, 1,
             [&](int view, int sample, int) { finish_heatmap<Acc>(phase, view, sample); });
}

// ---- Backward

// to = from * the gradient before the ReLU, position by position.
template <class Acc, int V, class In, class Out>
__device__ __forceinline__ void multiply_chunk(const Chunk<Acc, V>& chunk, bool channels_last, const In* from,
                                               Out* to) {
  const auto multiply = [&](index_t at, const Acc(&map)[V]) {
    const Pack<In, V> in = read<V>(from + at);
    Pack<Out, V> out;
#pragma unroll
    for (int k = 0; k < V; ++k) out.value[k] = Rounded<Out>::from(Acc(load(in.value[k])) * map[k]);
    write<V>(to + at, out);
  };
  if (!channels_last) {
    each_flat(chunk, [&](int at, const Cursor&, const Acc(&map)[V]) { multiply(at, map); });
    return;
  }
#pragma unroll 1
  for (int p = warp(); p < chunk.positions; p += block_warps) {
    Acc map[V];
#pragma unroll
    for (int k = 0; k < V; ++k) map[k] = chunk.shared.map(p);
#pragma unroll(V <= 4 ? 2 : 1)
    for (int c = lane() * V; c < chunk.channels; c += warp_threads * V) multiply(index_t(p) * chunk.stride + c, map);
  }
}

// to = weight of the channel * the gradient before the ReLU.
template <class Acc, int V, class Out>
__device__ __forceinline__ void outer_chunk(const Chunk<Acc, V>& chunk, bool channels_last, Out* to) {
  if (!channels_last) {
    each_flat(chunk, [&](int at, Cursor cursor, const Acc(&map)[V]) {
      Pack<Out, V> out;
#pragma unroll
      for (int k = 0; k < V; ++k, cursor.next()) {
        out.value[k] = Rounded<Out>::from(chunk.weight(cursor.channel) * map[k]);
      }
      write<V>(to + at, out);
    });
    return;
  }
  each_column(
      chunk,
      [&](int channel, int first, int step) {
        Acc weights[V];
#pragma unroll
        for (int k = 0; k < V; ++k) weights[k] = chunk.weight(channel + k);
#pragma unroll(V <= 4 ? 2 : 1)
        for (int p = first; p < chunk.positions; p += step) {
          Pack<Out, V> out;
#pragma unroll
          for (int k = 0; k < V; ++k) out.value[k] = Rounded<Out>::from(weights[k] * chunk.shared.map(p));
          write<V>(to + index_t(p) * chunk.stride + channel, out);
        }
      },
      [](int, int, int) {});
}

template <class A, class G, class Acc, int V>
__device__ __forceinline__ void cam_backward_split(const CamBackwardPhase& phase, int view, int sample, int split) {
  const CamBackward& call = phase.views[view];
  const Cam& cam = call.forward;
  const int positions = int(cam.positions);
  const CamShared<Acc> shared = cam_shared<Acc>(positions);
  const Acc* heatmap = static_cast<const Acc*>(cam.heatmaps) + index_t(sample) * positions;
  const Acc* grad_heatmap = static_cast<const Acc*>(call.grad_heatmaps) + index_t(sample) * positions;
  each(positions, [&](int p) { shared.map(p) = relu_gradient(simt::gld(heatmap + p), simt::gld(grad_heatmap + p)); });
  const int first = split * phase.plan.split_channels;
  const SplitOffsets offsets(cam, sample, first);
  const int channels = minimum(int(cam.channels) - first, phase.plan.split_channels);
  const Chunk<Acc, V> chunk{positions, channels, int(cam.channels), shared};
  const bool elementwise = cam.weighting == Weighting::elementwise;
  const index_t offset = elementwise ? offsets.map : offsets.pooled;
  const G* gradients = static_cast<const G*>(cam.gradients) + offset;
  if (!elementwise && call.grad_features != nullptr) {
    each(channels, [&](int c) { chunk.weight(c) = load(simt::gld(gradients + c)); });
  }
  __syncthreads();
  if (call.grad_features != nullptr) {
    A* grad_features = static_cast<A*>(call.grad_features) + offsets.map;
    if (elementwise) {
      multiply_chunk(chunk, cam.channels_last, gradients, grad_features);
    } else {
      outer_chunk(chunk, cam.channels_last, grad_features);
    }
  }
  if (call.grad_gradients != nullptr) {
    const A* features = static_cast<const A*>(cam.features) + offsets.map;
    G* grad_gradients = static_cast<G*>(call.grad_gradients) + offset;
    if (elementwise) {
      multiply_chunk(chunk, cam.channels_last, features, grad_gradients);
    } else {
      // Through shared memory, in the place of the weights: neighbouring threads then write neighbouring channels.
      const auto emit = [&](int channel, Acc sum) { chunk.weight(channel) = sum; };
      if (cam.channels_last) {
        sum_columns(chunk, features, true, emit);
      } else {
        sum_flat(chunk, features, true, emit);
      }
      each(channels, [&](int c) { simt::gst(grad_gradients + c, Rounded<G>::from(chunk.weight(c))); });
    }
  }
  __syncthreads();
}

template <class Acc>
__device__ __forceinline__ void cam_backward_phase(const CamBackwardPhase& phase) {
  const Cam& call = phase.views[0].forward;
  with_views<Acc>(call, [&](auto a, auto g) {
    using A = decltype(a);
    using G = decltype(g);
    each_split(call.batch, phase.view_count, phase.plan.splits, [&](int view, int sample, int split) {
      if (phase.plan.vectorised) {
        cam_backward_split<A, G, Acc, 16 / sizeof(A)>(phase, view, sample, split);
      } else {
        cam_backward_split<A, G, Acc, 1>(phase, view, sample, split);
      }
    });
  });
}

}  // namespace cgc::CGC_ISA
