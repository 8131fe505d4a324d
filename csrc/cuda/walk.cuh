// How a block walks over a chunk of channels of one sample, in either memory format: map sums over channels, sums over
// positions by channel.
//
// A contiguous sample is one flat array [C * P]: threads take vectors of V elements at a stride that is a multiple of
// P, so that a thread meets the same positions again and again. In channels_last a row [C] of one position is read by
// one warp, and sums over positions are taken column by column.
#pragma once

#include "platform.cuh"

namespace cgc::CGC_ISA {

constexpr int most_channels = 1024;  // of a chunk

// Vectors of V elements until positions repeat, and how many of them a block takes at once.
struct Walk {
  CGC_HD Walk(int positions, int v) : positions(positions) {
    int divisor = v;  // the greatest common one: v is a power of two
    while (positions % divisor != 0) divisor /= 2;
    const int period = positions / divisor;
    columns = period <= block_threads ? block_threads / period * period : period;
  }
  int positions, columns;
};

// The heatmap, or the gradient before the ReLU, [P]; the weights, permuted; and a tile.
template <class Acc>
struct CamShared {
  __device__ __forceinline__ Acc& map(int position) const { return memory[most_channels + position]; }
  __device__ __forceinline__ Acc& weight(int slot) const { return memory[slot]; }
  __device__ __forceinline__ Acc& tile(int i) const { return memory[most_channels + round_up(positions, 4) + i]; }
  Acc* memory;
  int positions;
};

// Elements of the tile for vectors of `v`.
CGC_HD inline int tile_size(int positions, int v) { return maximum(block_threads, Walk(positions, v).columns) * v; }

// Shared memory of a phase; `v` as of vectorised accesses, which need most.
CGC_HD inline index_t cam_shared_bytes(int positions, int v, int acc_bytes) {
  const int tile = maximum(tile_size(positions, v), tile_size(positions, 1));
  return index_t(acc_bytes) * (round_up(positions, 4) + most_channels + tile);
}

template <class Acc>
__device__ __forceinline__ CamShared<Acc> cam_shared(int positions) {
  SIMT_DYN_SHARED(Acc, memory);
  return {memory, positions};
}

// A chunk of one sample as its block sees it.
template <class Acc, int V>
struct Chunk {
  int positions, channels, stride;  // stride: C, between positions in channels_last
  CamShared<Acc> shared;

  // Neighbouring lanes want the same one of V neighbours: storing these apart spares them bank conflicts.
  __device__ __forceinline__ static int slot(int i, int columns) { return i % V * columns + i / V; }
  __device__ __forceinline__ Acc& weight(int channel) const { return shared.weight(slot(channel, most_channels / V)); }

  __device__ __forceinline__ int vectors() const { return channels * positions / V; }
};

// Position and channel of successive elements of a flat array.
struct Cursor {
  __device__ __forceinline__ Cursor(int element, int positions)
      : channel(element / positions), position(element - channel * positions), positions(positions) {}
  __device__ __forceinline__ void next() {
    if (++position == positions) position = 0, ++channel;
  }
  int channel, position, positions;
};

// ---- Contiguous

// map[p] += sum over channels of term(element, channel, sums): the latter adds V products to V sums.
template <class Acc, int V, class F>
__device__ __forceinline__ void add_flat(const Chunk<Acc, V>& chunk, F&& term) {
  const Walk walk(chunk.positions, V);
  const int vectors = chunk.vectors(), stride = walk.columns * V / chunk.positions;
#pragma unroll 1
  for (int piece = 0; piece < walk.columns; piece += block_threads) {
    const int width = minimum(block_threads, walk.columns - piece);
    Acc sums[V] = {};
    if (thread() < width) {
      Cursor cursor((piece + thread()) * V, chunk.positions);
#pragma unroll(V <= 4 ? 2 : 1)
      for (int v = piece + thread(); v < vectors; v += walk.columns, cursor.channel += stride)
        term(v * V, cursor, sums);
#pragma unroll
      for (int k = 0; k < V; ++k) chunk.shared.tile(k * block_threads + thread()) = sums[k];
    }
    __syncthreads();
    const int first = piece * V % chunk.positions;
    each(chunk.positions, [&](int p) {
      Acc sum = 0;
#pragma unroll 1
      for (int i = p < first ? p - first + chunk.positions : p - first; i < width * V; i += chunk.positions) {
        sum += chunk.shared.tile(Chunk<Acc, V>::slot(i, block_threads));
      }
      chunk.shared.map(p) += sum;
    });
    __syncthreads();
  }
}

// emit(channel, sum over positions of values, or of values * map), each by one thread.
template <class Acc, int V, class T, class F>
__device__ __forceinline__ void sum_flat(const Chunk<Acc, V>& chunk, const T* values, bool by_map, F&& emit) {
  const Walk walk(chunk.positions, V);
  const int vectors = chunk.vectors(), positions = chunk.positions;
  const int lanes = positions > 64 ? 32 : positions > 8 ? 8 : 1;  // that share a channel
#pragma unroll 1
  for (int base = 0; base < vectors; base += walk.columns) {
    const int count = minimum(walk.columns, vectors - base), channels = count * V / positions;
    each(count, [&](int v) {
      const Pack<T, V> pack = read<V>(values + (base + v) * V);
#pragma unroll
      for (int k = 0; k < V; ++k) chunk.shared.tile(k * walk.columns + v) = load(pack.value[k]);
    });
    __syncthreads();
#pragma unroll 1
    for (int start = 0; start < channels; start += block_threads / lanes) {
      const int channel = start + thread() / lanes;
      Acc sum = 0;
      if (channel < channels) {
#pragma unroll 2
        for (int p = thread() % lanes; p < positions; p += lanes) {
          const Acc value = chunk.shared.tile(Chunk<Acc, V>::slot(channel * positions + p, walk.columns));
          sum += by_map ? value * chunk.shared.map(p) : value;
        }
      }
      sum = warp_sum(sum, lanes);
      if (channel < channels && thread() % lanes == 0) emit(base * V / positions + channel, sum);
    }
    __syncthreads();
  }
}

// visit(element, cursor, map at its V positions)
template <class Acc, int V, class F>
__device__ __forceinline__ void each_flat(const Chunk<Acc, V>& chunk, F&& visit) {
  const Walk walk(chunk.positions, V);
  const int vectors = chunk.vectors(), stride = walk.columns * V / chunk.positions;
  each(walk.columns, [&](int column) {
    Cursor cursor(column * V, chunk.positions);
    Acc map[V];
    Cursor along = cursor;
#pragma unroll
    for (int k = 0; k < V; ++k, along.next()) map[k] = chunk.shared.map(along.position);
#pragma unroll(V <= 4 ? 2 : 1)
    for (int v = column; v < vectors; v += walk.columns, cursor.channel += stride) visit(v * V, cursor, map);
  });
}

// ---- channels_last

// map[p] += sum of dot(offset of the row, first channel), which multiplies V neighbours.
template <class Acc, int V, class F>
__device__ __forceinline__ void add_rows(const Chunk<Acc, V>& chunk, F&& dot) {
#pragma unroll 1
  for (int p = warp(); p < chunk.positions; p += block_warps) {
    Acc sum = 0;
#pragma unroll(V <= 4 ? 2 : 1)
    for (int c = lane() * V; c < chunk.channels; c += warp_threads * V) sum += dot(index_t(p) * chunk.stride, c);
    sum = warp_sum(sum);
    if (lane() == 0) chunk.shared.map(p) += sum;
  }
  __syncthreads();
}

// Deals columns of V channels out to the block: visit(first channel, first position, step between positions, column).
template <class Acc, int V, class F, class End>
__device__ __forceinline__ void each_column(const Chunk<Acc, V>& chunk, F&& visit, End&& end) {
  const int columns = chunk.channels / V;
#pragma unroll 1
  for (int start = 0; start < columns; start += block_threads) {
    const int width = minimum(block_threads, columns - start), groups = block_threads / width;
    const int group = thread() / width, column = thread() - group * width;
    if (group < groups) visit((start + column) * V, group, groups);
    end(start * V, width, groups);
  }
}

template <class Acc, int V, class T, class F>
__device__ __forceinline__ void sum_columns(const Chunk<Acc, V>& chunk, const T* values, bool by_map, F&& emit) {
  each_column(
      chunk,
      [&](int channel, int first, int step) {
        Acc sums[V] = {};
#pragma unroll(V <= 4 ? 2 : 1)
        for (int p = first; p < chunk.positions; p += step) {
          const Pack<T, V> pack = read<V>(values + index_t(p) * chunk.stride + channel);
          const Acc share = by_map ? chunk.shared.map(p) : Acc(1);
#pragma unroll
          for (int k = 0; k < V; ++k) sums[k] += share * Acc(load(pack.value[k]));
        }
#pragma unroll
        for (int k = 0; k < V; ++k) chunk.shared.tile(k * block_threads + thread()) = sums[k];
      },
      [&](int channel, int width, int groups) {
        __syncthreads();
        each(width * V, [&](int i) {
          Acc sum = 0;
#pragma unroll 1
          for (int g = 0; g < groups; ++g) sum += chunk.shared.tile(i % V * block_threads + g * width + i / V);
          emit(channel + i, sum);
        });
        __syncthreads();
      });
}

}  // namespace cgc::CGC_ISA
