// Contiguous features, [B, C, P] in memory: their heatmaps, and the gradients of features and of gradients.
#pragma once

#include "cam.cuh"

namespace cgc::CGC_ISA {

// Sums over the channels of `width` vectors of V from position `start` on, added to map [P]. tile: [V, 256], the sums
// of each thread. Four lanes share a position.
template <int V, class Acc>
__device__ __forceinline__ void fold_positions(const Acc* tile, int start, int width, int positions, Acc* map) {
  constexpr int lanes = 4;
  for (int base = 0; base < positions; base += block_threads / lanes) {
    const int p = base + thread() / lanes, offset = p - start + (p < start ? positions : 0);
    Acc sum = 0;
    if (p < positions) {
#pragma unroll 2
      for (int i = offset + thread() % lanes * positions; i < width * V; i += lanes * positions) {
        sum += tile[i % V * block_threads + i / V];
      }
    }
    sum = warp_sum(sum, lanes);
    if (p < positions && thread() % lanes == 0) map[p] += sum;
  }
}

// Threads take vectors at a stride of turn, so that a thread always adds to the same positions.
template <class A, class G, int V, bool elementwise>
__global__ void __launch_bounds__(block_threads, 4) cam_flat(const __grid_constant__ CamCall<A, G> call) {
  using Acc = acc_t<A>;
  constexpr int loads = together<A, G, V, elementwise, 6>;
  SIMT_DYN_SHARED(Acc, tile);
  Acc *map = tile + V * block_threads, *weights = map + call.positions;
  const CamPart<A, G> part(call, false, elementwise, call.positions);
  const int positions = call.positions, vectors = part.channels * positions / V, turn = call.turn;
  Pack<A, V> a[loads];
  Pack<G, V> g[elementwise ? loads : 1];
  const auto fetch = [&](int v) {
    unrolled<loads>([&](int u) {
      const int at = v + u * turn;
      if (at >= vectors) return;
      a[u] = read<V>(element(part.features, at * V));
      if constexpr (elementwise) g[u] = read<V>(element(part.gradients, at * V));
    });
  };
  if (thread() < turn) fetch(thread());  // on their way while the weights arrive
  simt::release_successor();
  if (call.follows) simt::wait_for_predecessor();
  each(positions, [&](int p) { map[p] = 0; });
  if constexpr (!elementwise) each(part.channels, [&](int c) { weights[c] = Acc(simt::gld(part.gradients + c)); });
  __syncthreads();
  for (int piece = 0; piece < turn; piece += block_threads) {
    const int width = minimum(block_threads, turn - piece), column = piece + thread();
    Acc sums[V] = {};
    int ahead[V];  // channels from the first one of a turn to that of an element
    unrolled<V>([&](int k) { ahead[k] = call.by_positions.quotient(column * V + k); });
    for (int v = column, channel = 0; thread() < width && v < vectors;
         v += loads * turn, channel += loads * call.turn_channels) {
      if (v != thread()) fetch(v);
      unrolled<loads>([&](int u) {
        if (v + u * turn >= vectors) return;
        unrolled<V>([&](int k) {
          sums[k] +=
              (elementwise ? g[elementwise ? u : 0].at(k) : weights[channel + u * call.turn_channels + ahead[k]]) *
              a[u].at(k);
        });
      });
    }
    unrolled<V>([&](int k) { tile[k * block_threads + thread()] = sums[k]; });
    __syncthreads();
    fold_positions<V>(tile, call.by_positions.remainder(piece * V), width, positions, map);
    __syncthreads();
  }
  Acc* to = call.sums[part.view] + rows_before(part.sample * call.splits + part.split, positions);
  each(positions, [&](int p) { simt::gst(to + p, call.splits == 1 ? relu(map[p]) : map[p]); });
  simt::wait_for_predecessor();
}

template <int V, bool elementwise, class A, class G>
int launch_cam_flat(CamCall<A, G> call, Stream& stream) {
  const int period = flat_period(call.positions, V);
  call.turn = period <= block_threads ? block_threads / period * period : period;
  call.turn_channels = call.turn * V / call.positions;
  const index_t elements = V * block_threads + call.positions + (elementwise ? 0 : call.split_channels);
  return start_cam(&cam_flat<A, G, V, elementwise>, call, elements, stream);
}

// ---- Backward: each is read and written once

// A vector's part of the sums over positions: it holds the end of one channel and, maybe, the start of the next.
template <class Acc>
struct VectorSums {
  Acc below, above;
};

// The sums over positions of a turn's channels, written. vectors: of the turn.
template <int V, class Acc, class G>
__device__ __forceinline__ void write_sums(const VectorSums<Acc>* vectors, int positions, int channels, G* to) {
  each(channels, [&](int channel) {
    const int begin = channel * positions, end = begin + positions;
    Acc sum = begin % V == 0 ? vectors[begin / V].below : vectors[begin / V].above;
#pragma unroll 2
    for (int v = begin / V + 1; v < ceil_div(end, V); ++v) sum += vectors[v].below;
    simt::gst(to + channel, G(sum));
  });
}

// product = grad * the weights of the elements' channels, of which `left` elements are of the first; and their sums
// with a.
template <int V, class A, class Acc>
__device__ __forceinline__ VectorSums<Acc> add_channels(const Acc (&grad)[V], const Pack<A, V>& a, const Acc* weights,
                                                        int left, Acc (&product)[V]) {
  const Acc near = weights[0], far = weights[1];
  VectorSums<Acc> sums{};
  unrolled<V>([&](int k) {
    const bool mine = k < left;
    product[k] = grad[k] * (mine ? near : far);
    if (mine) sums.below += grad[k] * a.at(k);
    if (!mine) sums.above += grad[k] * a.at(k);
  });
  return sums;
}

// A thread takes several vectors of V elements at once. V is at most P unless elementwise.
template <class A, class G, int V, bool elementwise>
__global__ void __launch_bounds__(block_threads, 4) cam_flat_backward(const __grid_constant__ CamCall<A, G> call) {
  using Acc = acc_t<A>;
  constexpr int loads = together<A, G, V, elementwise, 7>;
  const int positions = call.positions, turn = call.turn;
  SIMT_DYN_SHARED(VectorSums<Acc>, sums);                              // [turn]; of elementwise none
  Acc* map = reinterpret_cast<Acc*>(sums + (elementwise ? 0 : turn));  // [P + V], the map and its start again
  Acc* weights = map + positions + V;                                  // [channels + 1]
  const CamPart<A, G> part(call, true, elementwise, positions);
  const int vectors = part.channels * positions / V;
  const int end_features = part.wants_features ? vectors : 0, end_gradients = part.wants_gradients ? vectors : 0;
  Pack<A, V> a[loads] = {};
  Pack<G, V> g[elementwise ? loads : 1];
  const auto fetch = [&](int base) {
    unrolled<loads>([&](int u) {
      const int local = thread() + u * block_threads, at = base + local;
      if (local >= turn) return;
      if (at < end_gradients) a[u] = read<V>(element(part.features, at * V));
      if (elementwise && at < end_features) g[elementwise ? u : 0] = read<V>(element(part.gradients, at * V));
    });
  };
  fetch(0);  // inputs, which no kernel before this one writes
  simt::release_successor();
  if (call.follows) simt::wait_for_predecessor();
  if (!elementwise && part.wants_features) {
    each(part.channels + 1,
         [&](int c) { weights[c] = c < part.channels ? Acc(simt::gld(part.gradients + c)) : Acc(0); });
  }
  load_gradient(call, part, V, map);
  __syncthreads();
  for (int base = 0, first = 0; base < vectors; base += turn, first += call.turn_channels) {
    if (base != 0) fetch(base);
    const int count = minimum(turn, vectors - base);
    unrolled<loads>([&](int u) {
      const int local = thread() + u * block_threads, at = base + local;
      if (local >= count) return;
      const int ahead = call.by_positions.quotient(local * V), position = local * V - ahead * positions;
      Acc grad[V], product[V];
      unrolled<V>([&](int k) { grad[k] = map[position + k]; });
      if constexpr (elementwise) {
        multiply<V>(grad, g[u], at < end_features, element(part.to_features, at * V));
        multiply<V>(grad, a[u], at < end_gradients, element(part.to_gradients, at * V));
      } else {
        sums[local] = add_channels(grad, a[u], weights + first + ahead, positions - position, product);
        if (at < end_features) write<V>(element(part.to_features, at * V), product);
      }
    });
    if (elementwise || !part.wants_gradients) continue;
    __syncthreads();
    write_sums<V>(sums, positions, minimum(call.turn_channels, part.channels - first), part.to_gradients + first);
    __syncthreads();
  }
  simt::wait_for_predecessor();
}

template <int V, bool elementwise, class A, class G>
int launch_cam_flat_backward(CamCall<A, G> call, Stream& stream) {
  constexpr int most = block_threads * together<A, G, V, elementwise, 7>;
  int unit = flat_period(call.positions, V);  // doubled until the sums of a turn fill sectors, as far as that fits
  while (unit * V / call.positions * int(sizeof(G)) % 32 != 0 && 2 * unit <= most) unit *= 2;
  call.turn = most / unit * unit;
  call.turn_channels = call.turn * V / call.positions;
  const index_t sums_and_weights = elementwise ? 0 : 2 * call.turn + call.split_channels + 1;
  return start_cam(&cam_flat_backward<A, G, V, elementwise>, call, call.positions + V + sums_and_weights, stream);
}

}  // namespace cgc::CGC_ISA
