// Features in channels_last, [B, P, C] in memory: their heatmaps, and the gradients of features and of gradients.
#pragma once

#include "cam.cuh"

namespace cgc::CGC_ISA {

// Rows that a warp takes at once: with seven of 16 bytes a thread's registers are full, and a map of 7 x 7 is seven
// rows for each warp.
template <class A, class G, int V, bool elementwise>
constexpr int rows_together = together<A, G, V, elementwise, (sizeof(A) == 8 ? 4 : 7)>;

// A warp takes a share of the positions, some of them at a time; its lanes take neighbouring channels.
template <class A, class G, int V, bool elementwise>
__global__ void __launch_bounds__(block_threads, 4) cam_rows(const __grid_constant__ CamCall<A, G> call) {
  using Acc = acc_t<A>;
  constexpr int rows = rows_together<A, G, V, elementwise>, numbers = rows <= 4 ? 4 : 8;
  SIMT_DYN_SHARED(Acc, weights);  // [split_channels], of elementwise none
  const CamPart<A, G> part(call, false, elementwise, 1);
  const int stride = call.channels, share = ceil_div(call.positions, block_warps), first = lane() * V;
  const int begin = minimum(warp() * share, call.positions), end = minimum(begin + share, call.positions);
  Pack<A, V> a[rows];
  Pack<G, V> g[elementwise ? rows : 1];
  const auto fetch = [&](int p, int channel) {
#pragma unroll
    for (int u = 0; u < rows; ++u) {
      a[u] = {};
      if constexpr (elementwise) g[u] = {};
      if (u >= call.row_step || p + u >= end || channel >= part.channels) continue;
      a[u] = read<V>(element(part.features, (p + u) * stride + channel));
      if constexpr (elementwise) g[u] = read<V>(element(part.gradients, (p + u) * stride + channel));
    }
  };
  fetch(begin, first);  // on their way while the weights arrive
  simt::release_successor();
  if (call.follows) simt::wait_for_predecessor();
  if constexpr (!elementwise) {
    each(part.channels, [&](int c) { weights[c] = Acc(simt::gld(part.gradients + c)); });
    __syncthreads();
  }
  Acc* to = call.sums[part.view] + rows_before(part.sample * call.splits + part.split, call.positions);
  for (int p = begin; p < end; p += call.row_step) {
    Acc sums[numbers] = {};
#pragma unroll 1
    for (int channel = first; channel < part.channels; channel += warp_threads * V) {
      if (p != begin || channel != first) fetch(p, channel);
      Pack<Acc, V> weight;
      if constexpr (!elementwise) weight = *reinterpret_cast<const Pack<Acc, V>*>(weights + channel);
      unrolled<V>([&](int k) {
#pragma unroll
        for (int u = 0; u < rows; ++u)
          sums[u] += (elementwise ? g[elementwise ? u : 0].at(k) : weight.at(k)) * a[u].at(k);
      });
    }
    const Acc sum = warp_sums(sums);
    const int u = lane() * numbers / warp_threads;
    if (lane() % (warp_threads / numbers) != 0 || u >= call.row_step || p + u >= end) continue;
    simt::gst(to + p + u, call.splits == 1 ? relu(sum) : sum);
  }
  simt::wait_for_predecessor();
}

template <int V, bool elementwise, class A, class G>
int launch_cam_rows(CamCall<A, G> call, Stream& stream) {
  const int share = ceil_div(call.positions, block_warps);
  call.row_step = ceil_div(share, ceil_div(share, rows_together<A, G, V, elementwise>));  // rounds of equal size
  return start_cam(&cam_rows<A, G, V, elementwise>, call, elementwise ? 0 : call.split_channels, stream);
}

// ---- Backward: each is read and written once

constexpr int sums_row = warp_threads + 1;  // odd: no bank conflicts

// Sums of V neighbouring channels by every thread, over the block's warps, written. tile: shared, [warps, V, sums_row].
template <int V, class Acc, class G>
__device__ __forceinline__ void write_row_sums(const Acc (&sums)[V], int channels, Acc* tile, G* to) {
  unrolled<V>([&](int k) { tile[(warp() * V + k) * sums_row + lane()] = sums[k]; });
  __syncthreads();
  each(channels, [&](int i) {
    Acc sum = 0;
    unrolled<block_warps>([&](int w) { sum += tile[(w * V + i % V) * sums_row + i / V]; });
    simt::gst(to + i, G(sum));
  });
}

// A lane takes a vector of channels, a warp every eighth position, several at a time.
template <class A, class G, int V, bool elementwise>
__global__ void __launch_bounds__(block_threads, 4) cam_rows_backward(const __grid_constant__ CamCall<A, G> call) {
  using Acc = acc_t<A>;
  constexpr int loads = minimum(together<A, G, V, elementwise, 7>, elementwise ? 3 : 7);
  SIMT_DYN_SHARED(Acc, map);         // [P]
  Acc* tile = map + call.positions;  // the weights [32 V], then sums
  const int stride = call.channels, first = lane() * V;
  const CamPart<A, G> part(call, true, elementwise, 1);
  const int end = first < part.channels ? call.positions : 0;
  const int end_features = part.wants_features ? end : 0, end_gradients = part.wants_gradients ? end : 0;
  Pack<A, V> a[loads];
  Pack<G, V> g[elementwise ? loads : 1];
  const auto fetch = [&](int p) {
    unrolled<loads>([&](int u) {
      const int at = p + u * block_warps;
      if (!elementwise) a[u] = {};
      if (at < end_gradients) a[u] = read<V>(element(part.features, at * stride + first));
      if (elementwise && at < end_features)
        g[elementwise ? u : 0] = read<V>(element(part.gradients, at * stride + first));
    });
  };
  fetch(warp());  // inputs, which no kernel before this one writes
  simt::release_successor();
  if (call.follows) simt::wait_for_predecessor();
  if (!elementwise && part.wants_features)
    each(part.channels, [&](int c) { tile[c] = Acc(simt::gld(part.gradients + c)); });
  load_gradient(call, part, 0, map);
  __syncthreads();
  Acc sums[V] = {}, weight[V];
  unrolled<V>([&](int k) { weight[k] = elementwise ? Acc(0) : tile[first + k]; });
  for (int p = warp(); p < end; p += loads * block_warps) {
    if (p != warp()) fetch(p);
#pragma unroll
    for (int u = 0; u < loads; ++u) {
      const int at = p + u * block_warps;
      if (elementwise && at >= end) continue;
      const Acc grad = at < end ? map[at] : Acc(0);
      Acc product[V];
      if constexpr (elementwise) {
        unrolled<V>([&](int k) { product[k] = grad; });
        multiply<V>(product, a[u], at < end_gradients, element(part.to_gradients, at * stride + first));
        multiply<V>(product, g[u], at < end_features, element(part.to_features, at * stride + first));
      } else {
        unrolled<V>([&](int k) {
          product[k] = grad * weight[k];
          sums[k] += grad * a[u].at(k);
        });
        if (at < end_features) write<V>(element(part.to_features, at * stride + first), product);
      }
    }
  }
  if (!elementwise && part.wants_gradients) {
    __syncthreads();  // the weights have been read
    write_row_sums<V>(sums, part.channels, tile, part.to_gradients);
  }
  simt::wait_for_predecessor();
}

template <int V, bool elementwise, class A, class G>
int launch_cam_rows_backward(CamCall<A, G> call, Stream& stream) {
  call.split_channels = warp_threads * V;
  call.splits = ceil_div(call.channels, call.split_channels);
  const index_t sums = elementwise ? 0 : block_warps * V * sums_row;
  return start_cam(&cam_rows_backward<A, G, V, elementwise>, call, call.positions + sums, stream);
}

}  // namespace cgc::CGC_ISA
