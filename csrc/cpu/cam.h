// Stage cam: heatmaps ReLU(sum_c weight_c A_c) of one sample, features and gradients each read once.
//
// Loops run over whole vectors for any H x W: [C, P] is taken in flat blocks of whole rows, since a row of 7 x 7
// numbers does not fill vectors and 16 of them do.
#pragma once

#include "../common/gradients.h"
#include "cam_loops.h"
#include "executor.h"

namespace cgc::CGC_ISA {

template <class A, class G, class Acc>
class CamSample {
 public:
  explicit CamSample(const Cam& call)
      : call_(call),
        block_(call.channels_last ? 0 : block_channels<A>(call.channels, call.positions)),
        repetition_(block_, call.positions),
        sums_(block_ * call.positions),
        ones_(call.positions),
        weights_(call.channels + repetition_.padding) {
    fill<Acc>(ones_, call.positions, 1);
  }

  void operator()(index_t sample) {
    const index_t channels = call_.channels, positions = call_.positions;
    const A* features = static_cast<const A*>(call_.features) + sample * channels * positions;
    const G* gradients = static_cast<const G*>(call_.gradients) +
                         sample * channels * (call_.weighting == Weighting::pooled ? 1 : positions);
    Acc* heatmap = static_cast<Acc*>(call_.heatmaps) + sample * positions;
    const bool elementwise = call_.weighting == Weighting::elementwise;
    if (!elementwise) weigh(gradients, sample);
    if (call_.channels_last) {
      for (index_t p = 0; p < positions; ++p) {
        const A* row = features + p * channels;
        heatmap[p] =
            elementwise ? dot<Acc>(row, gradients + p * channels, channels) : dot<Acc>(row, weights_.get(), channels);
      }
    } else if (elementwise) {
      add_blocks(features, [=](index_t c) { return values(gradients + c * positions); }, heatmap);
    } else {
      add_blocks(features, [=](index_t c) { return repetition_.of(weights_ + c); }, heatmap);
    }
    for (index_t p = 0; p < positions; ++p) heatmap[p] = relu(heatmap[p]);
  }

 private:
  // [C, P] in memory: the heatmap as the sum of features times factors, where factors(c) are those of the block that
  // begins with channel c.
  template <class F>
  void add_blocks(const A* features, F&& factors, Acc* heatmap) {
    const index_t channels = call_.channels, positions = call_.positions;
    fill<Acc>(sums_, block_ * positions, 0);
    for (index_t c = 0; c < channels; c += block_) {
      add_products(features + c * positions, factors(c), minimum(block_, channels - c) * positions, sums_.get());
    }
    fill<Acc>(heatmap, positions, 0);
    for (index_t r = 0; r < block_; ++r) {
      for (index_t p = 0; p < positions; ++p) heatmap[p] += sums_[r * positions + p];
    }
  }

  // Leaves one weight a channel in weights_.
  void weigh(const G* gradients, index_t sample) const {
    const index_t channels = call_.channels, positions = call_.positions;
    Acc* weights = weights_;
    if (call_.weighting == Weighting::pooled) return convert<Acc>(gradients, channels, weights);
    if (call_.channels_last) {
      fill<Acc>(weights, channels, 0);
      for (index_t p = 0; p < positions; ++p) add_products(gradients + p * channels, number(Acc(1)), channels, weights);
    } else {
      RowSums<G, Acc>(ones_, positions)(gradients, channels, weights);
    }
    for (index_t c = 0; c < channels; ++c) weights[c] /= Acc(positions);
    convert<Acc>(weights, channels, static_cast<Acc*>(call_.weights) + sample * channels);
  }

  const Cam& call_;
  index_t block_;
  Repetition<Acc> repetition_;
  Buffer<Acc> sums_, ones_, weights_;
};

template <class A, class G, class Acc>
void cam(const Cam& call, ParallelFor parallel_for) {
  run(parallel_for, call.batch, 1, [&](index_t begin, index_t end) {
    CamSample<A, G, Acc> sample(call);
    for (index_t i = begin; i < end; ++i) sample(i);
  });
}

}  // namespace cgc::CGC_ISA
