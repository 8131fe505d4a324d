// Stage contrast, forward: rows, keys, positives -> row losses and the loss. Logits are taken relative to the positive,
// whose own logit is then 0, with a running maximum.
#include "contrast.cuh"

namespace cgc::CGC_ISA {

// log of a sum of exponentials, 1 among them, as far as it has been added up.
template <class Acc>
struct alignas(16) LogSum {
  Acc largest = 0;    // at least that of the 1
  double others = 0;  // sum of exp(logit - largest), the 1 apart

  __device__ __forceinline__ void add(Acc logit) {
    if (logit > largest) {  // NaN is no maximum
      others *= double(std::exp(largest - logit));
      largest = logit;
    }
    others += double(std::exp(logit - largest));
  }
  __device__ __forceinline__ void merge(const LogSum& more) {
    const Acc highest = maximum(largest, more.largest);
    others = others * double(std::exp(largest - highest)) + more.others * double(std::exp(more.largest - highest));
    largest = highest;
  }
  // part(i) for i in [0, count), each read twice, together.
  template <class F>
  __device__ __forceinline__ static LogSum of(int count, F&& part) {
    LogSum total;
#pragma unroll 4
    for (int i = 0; i < count; ++i) total.largest = maximum(total.largest, part(i).largest);
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const LogSum each = part(i);
      total.others += each.others * double(std::exp(each.largest - total.largest));
    }
    return total;
  }
};

// The two rows of every lane into the sums of the split: lanes of a row first, then warps in order. row: of the count.
template <class Acc>
__device__ __forceinline__ void write_rows(const ContrastForward& phase, int row, int split, LogSum<Acc> (&sums)[2],
                                           Acc* memory) {
  auto* parts = reinterpret_cast<LogSum<Acc>*>(memory);  // [warps, 16], in the place of the tiles
  __syncthreads();
  unrolled<2>([&](int half) {
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      const Acc largest = __shfl_xor_sync(all_lanes, sums[half].largest, distance);
      sums[half].merge({largest, __shfl_xor_sync(all_lanes, sums[half].others, distance)});
    }
    if (fragment_column() == 0) parts[warp() * tile_rows + row_of(2 * half)] = sums[half];
  });
  __syncthreads();
  each(minimum(tile_rows, int(phase.call.count) - row), [&](int r) {
    const auto total = LogSum<Acc>::of(block_warps, [&](int w) { return parts[w * tile_rows + r]; });
    simt::gst(static_cast<LogSum<Acc>*>(phase.sums) + index_t(row + r) * phase.splits + split, total);
  });
}

template <class Acc>
__device__ __forceinline__ double merged_loss(const ContrastForward& phase, int row) {
  const auto* sums = static_cast<const LogSum<Acc>*>(phase.sums) + index_t(row) * phase.splits;
  const auto total = LogSum<Acc>::of(phase.splits, [&](int split) { return simt::gld(sums + split); });
  return row_loss(double(total.largest), total.others);
}

// Row losses and their mean, by one block. scratch: shared, [2 warps]
template <class Acc>
__device__ __forceinline__ void finish_loss(const ContrastForward& phase, double* scratch) {
  const int count = int(phase.call.count), begin = int(phase.call.first);
  const bool mse = phase.objective == Objective::mse;
  double totals[2] = {};  // of the rows' losses, and of 1 - positive
#pragma unroll 1
  for (int row = thread(); row < count; row += block_threads) {
    const double positive = simt::gld(phase.call.positives + begin + row);
    const double loss = mse ? unit_square(positive) / phase.pixels : merged_loss<Acc>(phase, row);
    simt::gst(phase.call.row_losses + row, mse ? 0 : loss);
    totals[0] += loss;
    totals[1] += 1 - positive;
  }
  block_sums(totals, scratch);
  double loss = totals[0] / double(count);
  if (phase.consistency > 0) loss += phase.consistency * (totals[1] / double(count));
  if (thread() == 0) assign(phase.loss, loss);
}

template <class Acc>
__global__ void __launch_bounds__(block_threads, 1) contrast_forward(const __grid_constant__ ContrastForward phase) {
  SIMT_DYN_SHARED(Acc, memory);
  const ContrastTiles<Acc> tiles(memory);
  const Contrast& call = phase.call;
  const int batch = int(call.batch), split = int(blockIdx.x % unsigned(phase.splits));
  const int row = int(call.first) + int(blockIdx.x / unsigned(phase.splits)) * tile_rows;
  const int share = ceil_div(column_tiles(batch), phase.splits) * tile_columns;
  const int begin = split * share, end = minimum(begin + share, batch);
  const ContrastSides sides{call.rows, call.keys, batch, int(call.length)};
  const Acc inverse = Acc(1 / call.temperature);
  simt::wait_for_predecessor();
  simt::release_successor();
  Acc positives[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int mine = row + row_of(2 * half);
    positives[half] = mine < batch ? Acc(simt::gld(call.positives + mine)) : Acc(0);
  }
  LogSum<Acc> sums[2];
  SliceStream<Acc> slices{sides, tiles, row};
  slices.start(begin, 0);
#pragma unroll 1
  for (int column = begin; column < end; column += tile_columns) {
    Acc c[4] = {};
    slices.add_similarities(column + tile_columns, 0, c);
    unrolled<4>([&](int i) {
      const int other = column + column_of(i);
      if (other < batch && other != row + row_of(i)) sums[i / 2].add((c[i] - positives[i / 2]) * inverse);
    });
  }
  write_rows(phase, row - int(call.first), split, sums, memory);
  if (phase.counter == nullptr) return;
  __syncthreads();
  unsigned* last = reinterpret_cast<unsigned*>(tiles.columns);
  if (thread() == 0) *last = simt::take_ticket(phase.counter);
  __syncthreads();
  if (*last == gridDim.x - 1) finish_loss<Acc>(phase, reinterpret_cast<double*>(tiles.rows));
}

// The loss alone: of the mse objective, or after a launch without a counter.
template <class Acc>
__global__ void __launch_bounds__(block_threads, 1) contrast_loss(const __grid_constant__ ContrastForward phase) {
  SIMT_DYN_SHARED(double, scratch);
  simt::wait_for_predecessor();
  simt::release_successor();
  finish_loss<Acc>(phase, scratch);
}

int launch_contrast(ContrastForward phase, Stream& stream) {
  const Contrast& call = phase.call;
  const bool mse = phase.objective == Objective::mse;
  if (!mse) {
    // Blocks for a large device, as far as there are columns, and few enough numbers to merge.
    const int rows = row_tiles(call.count), columns = column_tiles(call.batch);
    phase.splits = ceil_div(columns, ceil_div(columns, clamp(256 / rows, 1, columns)));  // none without columns
    phase.sums = stream.take(call.count * phase.splits * index_t(sizeof(LogSum<double>)));
    with_type(call.float64, [&](auto acc) {
      using Acc = decltype(acc);
      return stream.start(&contrast_forward<Acc>, unsigned(rows) * unsigned(phase.splits),
                          ContrastTiles<Acc>::elements * index_t(sizeof(Acc)), phase);
    });
  }
  if (!mse && phase.counter != nullptr) return stream.error();
  return with_type(call.float64, [&](auto acc) {
    return stream.start(&contrast_loss<decltype(acc)>, 1, 2 * block_warps * sizeof(double), phase);
  });
}

}  // namespace cgc::CGC_ISA
