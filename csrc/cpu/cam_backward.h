// Stage cam, backward: gradients of features and of gradients, block by block both, so that reading and writing
// overlap.
#pragma once

#include "../common/gradients.h"
#include "cam_loops.h"
#include "executor.h"
#include "stream.h"

namespace cgc::CGC_ISA {

// Made and written by blocks: rows of [P, C], or channels of [C, P]. Of these one block is one row where what delta is
// multiplied with lies in memory like them, since such rows fill their packs.
template <class A, class G, class Acc>
class CamBackwardSample {
 public:
  explicit CamBackwardSample(const CamBackward& call)
      : call_(call),
        cam_(call.forward),
        elementwise_(cam_.weighting == Weighting::elementwise),
        total_(cam_.channels * cam_.positions),
        block_(cam_.channels_last ? cam_.channels : cam_.positions * block_channels<A>(cam_.channels, cam_.positions)),
        width_(cam_.channels_last || elementwise_ ? block_ : cam_.positions),
        delta_(padded<A>(maximum(width_, cam_.positions))),
        delta_packs_(packs_of<A>(maximum(width_, cam_.positions))),
        weights_(padded<A>(cam_.channels)),
        weight_packs_(packs_of<A>(cam_.channels)),
        row_sums_(delta_packs_, cam_.positions),
        grad_features_(call.grad_features, cam_.batch * total_, block_ + Pack<A>::lanes),
        grad_gradients_(call.grad_gradients, cam_.batch * gradient_count(), block_ + Pack<A>::lanes) {}

  // grad_heatmap: [P], of this sample.
  void operator()(index_t sample, const Acc* grad_heatmap) {
    const index_t positions = cam_.positions;
    const Acc* heatmap = static_cast<const Acc*>(cam_.heatmaps) + sample * positions;
    for (index_t p = 0; p < positions; ++p) delta_[p] = relu_gradient(heatmap[p], grad_heatmap[p]);
    if (!cam_.channels_last) {
      for (index_t i = positions; i < width_; ++i) delta_[i] = delta_[i - positions];
      pack(delta_.get(), width_, delta_packs_.get());
    }
    const A* features = static_cast<const A*>(cam_.features) + sample * total_;
    const G* gradients = static_cast<const G*>(cam_.gradients) + sample * gradient_count();
    if (elementwise_) {
      if (grad_features_.wanted()) write(gradients, grad_features_, sample * total_);
      if (grad_gradients_.wanted()) write(features, grad_gradients_, sample * total_);
    } else {
      if (grad_features_.wanted()) write_weights(gradients, sample * total_);
      if (grad_gradients_.wanted()) write_sums(features, sample * cam_.channels);
    }
    stream_fence();
  }

 private:
  index_t gradient_count() const { return elementwise_ ? total_ : cam_.channels; }

  // A gradient that is from(row) times delta, from `offset` on.
  template <class Out, class From>
  void write_rows(Writer<Out>& writer, index_t offset, From from) {
    const Acc* delta = delta_;
    const auto delta_row = packs(delta_packs_.get());
    for (index_t begin = 0; begin < total_; begin += block_) {
      const index_t end = minimum(begin + block_, total_);
      Out* to = writer.begin(offset + begin, total_ - end >= Pack<A>::lanes);
      if (cam_.channels_last) {
        multiply_rows<A>(from, [=](index_t p) { return number(delta[p]); }, begin, end, total_, width_, to);
      } else {
        multiply_rows<A>(from, [=](index_t) { return delta_row; }, begin, end, total_, width_, to);
      }
      writer.commit(to, offset + begin, end - begin);
    }
  }

  template <class In, class Out>
  void write(const In* from, Writer<Out>& writer, index_t offset) {
    const index_t width = width_;
    write_rows(writer, offset, [=](index_t r) { return values(from + r * width); });
  }

  // The features' gradient where every channel has one weight.
  void write_weights(const G* gradients, index_t offset) {
    if (cam_.channels_last) {
      pack(gradients, cam_.channels, weight_packs_.get());
      const auto row = packs(weight_packs_.get());
      write_rows(grad_features_, offset, [=](index_t) { return row; });
    } else {
      convert<A>(gradients, cam_.channels, weights_.get());
      const Acc* weights = weights_;
      write_rows(grad_features_, offset, [=](index_t c) { return number(weights[c]); });
    }
  }

  // The gradient of the weights: features times delta, summed over the positions.
  void write_sums(const A* features, index_t offset) {
    G* to = static_cast<G*>(call_.grad_gradients) + offset;
    if (cam_.channels_last) {
      const Acc* delta = delta_;
      sum_rows(features, total_, width_, [=](index_t p) { return number(delta[p]); }, weight_packs_.get());
      unpack(weight_packs_.get(), width_, to);
    } else {
      row_sums_(features, cam_.channels, weights_.get());
      convert<A>(weights_.get(), cam_.channels, to);
    }
  }

  const CamBackward& call_;
  const Cam& cam_;
  bool elementwise_;
  index_t total_, block_, width_;
  Buffer<Acc> delta_;
  Buffer<Pack<A>> delta_packs_;
  Buffer<Acc> weights_;
  Buffer<Pack<A>> weight_packs_;
  RowSums<A> row_sums_;
  Writer<A> grad_features_;
  Writer<G> grad_gradients_;
};

template <class A, class G, class Acc>
void cam_backward(const CamBackward& call, ParallelFor parallel_for) {
  run(parallel_for, call.forward.batch, 1, [&](index_t begin, index_t end) {
    CamBackwardSample<A, G, Acc> sample(call);
    const Acc* grads = static_cast<const Acc*>(call.grad_heatmaps);
    for (index_t i = end; i-- > begin;) sample(i, grads + i * call.forward.positions);
  });
}

}  // namespace cgc::CGC_ISA
