// Stage cam: heatmaps ReLU(sum_c weight_c A_c) of one sample, features and gradients each read once.
#pragma once

#include "../common/gradients.h"
#include "cam_loops.h"
#include "executor.h"

namespace cgc::CGC_ISA {

// [P, C] in memory is summed within its rows, [C, P] over its rows: of a channel, or of a block of channels where that
// many are multiplied with what lies in memory like them, since such rows fill their packs.
template <class A, class G, class Acc>
class CamSample {
 public:
  explicit CamSample(const Cam& call)
      : call_(call),
        block_(call.weighting == Weighting::elementwise ? block_channels<A>(call.channels, call.positions) : 1),
        share_(packs_of<A>(call.positions)),
        sums_(packs_of<A>(block_ * call.positions)),
        block_sums_(padded<A>(block_ * call.positions)),
        weights_(padded<A>(call.channels)),
        weight_packs_(packs_of<A>(call.channels)),
        row_means_(share_, call.positions) {
    fill(share_.get(), packs_of<A>(call.positions), pack_of<A>(Acc(1) / Acc(call.positions)));
  }

  void operator()(index_t sample) {
    const index_t channels = call_.channels, positions = call_.positions;
    const A* features = static_cast<const A*>(call_.features) + sample * channels * positions;
    const G* gradients = static_cast<const G*>(call_.gradients) +
                         sample * channels * (call_.weighting == Weighting::pooled ? 1 : positions);
    Acc* heatmap = static_cast<Acc*>(call_.heatmaps) + sample * positions;
    if (call_.weighting == Weighting::pooled) {
      call_.channels_last ? pack(gradients, channels, weight_packs_.get())
                          : convert<A>(gradients, channels, weights_.get());
    } else if (call_.weighting == Weighting::mean) {
      average(gradients, static_cast<Acc*>(call_.weights) + sample * channels);
    }
    call_.channels_last ? sum_within_rows(features, gradients, heatmap) : sum_over_rows(features, gradients, heatmap);
    for (index_t p = 0; p < positions; ++p) heatmap[p] = relu(heatmap[p]);
  }

 private:
  // Means over the positions, left for this sample and in `weights`.
  void average(const G* gradients, Acc* weights) {
    const index_t channels = call_.channels, positions = call_.positions;
    if (call_.channels_last) {
      const auto share = number(Acc(1) / Acc(positions));
      const auto every = [=](index_t) { return share; };
      sum_rows<A>(gradients, positions * channels, channels, every, weight_packs_.get());
      unpack(weight_packs_.get(), channels, weights);
    } else {
      row_means_(gradients, channels, weights_.get());
      convert<A>(weights_.get(), channels, weights);
    }
  }

  void sum_over_rows(const A* features, const G* gradients, Acc* heatmap) {
    const index_t positions = call_.positions, total = call_.channels * positions, width = block_ * positions;
    const Acc* weights = weights_;
    if (call_.weighting == Weighting::elementwise) {
      sum_rows(features, total, width, [=](index_t r) { return values(gradients + r * width); }, sums_.get());
    } else {
      sum_rows(features, total, width, [=](index_t c) { return number(weights[c]); }, sums_.get());
    }
    unpack(sums_.get(), width, block_sums_.get());
    fill<Acc>(heatmap, positions, 0);
    for (index_t c = 0; c < block_; ++c) {
      for (index_t p = 0; p < positions; ++p) heatmap[p] += block_sums_[c * positions + p];
    }
  }

  void sum_within_rows(const A* features, const G* gradients, Acc* heatmap) const {
    const index_t channels = call_.channels;
    const bool elementwise = call_.weighting == Weighting::elementwise;
    for (index_t p = 0; p < call_.positions; ++p) {
      const A* row = features + p * channels;
      heatmap[p] = elementwise ? sum_row(row, values(gradients + p * channels), channels)
                               : sum_row(row, packs(weight_packs_.get()), channels);
    }
  }

  const Cam& call_;
  index_t block_;
  Buffer<Pack<A>> share_, sums_;
  Buffer<Acc> block_sums_, weights_;
  Buffer<Pack<A>> weight_packs_;
  RowSums<A> row_means_;
};

template <class A, class G, class Acc>
void cam(const Cam& call, ParallelFor parallel_for) {
  run(parallel_for, call.batch, 1, [&](index_t begin, index_t end) {
    CamSample<A, G, Acc> sample(call);
    for (index_t i = begin; i < end; ++i) sample(i);
  });
}

}  // namespace cgc::CGC_ISA
