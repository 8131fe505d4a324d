// Stage cam, backward: gradients of features and of gradients, block by block both, so that reading and writing
// overlap.
#pragma once

#include "../common/gradients.h"
#include "cam_loops.h"
#include "executor.h"
#include "stream.h"

namespace cgc::CGC_ISA {

// A unit is a block of [C, P], or a row of [P, C].
template <class A, class G, class Acc>
class CamBackwardSample {
 public:
  explicit CamBackwardSample(const CamBackward& call)
      : call_(call),
        cam_(call.forward),
        block_(cam_.channels_last ? 1 : block_channels<A>(cam_.channels, cam_.positions)),
        unit_(cam_.channels_last ? cam_.channels : block_ * cam_.positions),
        repetition_(cam_.channels_last ? 0 : block_, cam_.positions),
        delta_(block_ * cam_.positions),
        sums_(cam_.channels),
        weights_(cam_.channels + repetition_.padding),
        grad_features_(call.grad_features, cam_.batch * cam_.channels * cam_.positions, unit_),
        grad_gradients_(call.grad_gradients, gradient_count() * cam_.batch, unit_) {}

  // grad_heatmap: [P], of this sample.
  void operator()(index_t sample, const Acc* grad_heatmap) {
    const index_t positions = cam_.positions, total = cam_.channels * positions;
    const Acc* heatmap = static_cast<const Acc*>(cam_.heatmaps) + sample * positions;
    for (index_t p = 0; p < positions; ++p) delta_[p] = relu_gradient(heatmap[p], grad_heatmap[p]);
    for (index_t i = positions; i < block_ * positions; ++i) delta_[i] = delta_[i - positions];
    const A* features = static_cast<const A*>(cam_.features) + sample * total;
    const G* gradients = static_cast<const G*>(cam_.gradients) + sample * gradient_count();
    const bool elementwise = cam_.weighting == Weighting::elementwise;
    if (!elementwise) convert<Acc>(gradients, cam_.channels, weights_.get());
    if (grad_features_.wanted()) {
      elementwise ? write(gradients, sample * total, grad_features_) : write_weights(sample * total);
    }
    if (grad_gradients_.wanted()) {
      elementwise ? write(features, sample * total, grad_gradients_) : write_sums(features, sample * cam_.channels);
    }
    stream_fence();
  }

 private:
  index_t gradient_count() const {
    return cam_.channels * (cam_.weighting == Weighting::elementwise ? cam_.positions : 1);
  }

  // Calls body(first number, count, index) for every unit.
  template <class F>
  void each_unit(F&& body) const {
    const index_t total = cam_.channels * cam_.positions;
    for (index_t start = 0, unit = 0; start < total; start += unit_, ++unit) {
      body(start, minimum(unit_, total - start), unit);
    }
  }

  // A gradient that is `from`, [C, P] or [P, C], times delta.
  template <class In, class Out>
  void write(const In* from, index_t offset, Writer<Out>& writer) const {
    each_unit([&](index_t start, index_t count, index_t unit) {
      Out* to = writer.begin(offset + start);
      if (cam_.channels_last) {
        multiply<Acc>(from + start, number(delta_[unit]), count, to);
      } else {
        multiply<Acc>(from + start, values<Acc>(delta_), count, to);
      }
      writer.commit(offset + start, count);
    });
  }

  // The features' gradient where every channel has one weight.
  void write_weights(index_t offset) {
    each_unit([&](index_t start, index_t count, index_t unit) {
      A* to = grad_features_.begin(offset + start);
      if (cam_.channels_last) {
        multiply<Acc>(weights_.get(), number(delta_[unit]), count, to);
      } else {
        multiply<Acc>(delta_.get(), repetition_.of(weights_ + unit * block_), count, to);
      }
      grad_features_.commit(offset + start, count);
    });
  }

  // The gradient of the weights: features times delta, summed over the positions.
  void write_sums(const A* features, index_t offset) {
    const index_t channels = cam_.channels, positions = cam_.positions;
    if (cam_.channels_last) {
      fill<Acc>(sums_, channels, 0);
      for (index_t p = 0; p < positions; ++p) {
        add_products(features + p * channels, number(delta_[p]), channels, sums_.get());
      }
    } else {
      RowSums<A, Acc>(delta_, positions)(features, channels, sums_);
    }
    convert<Acc>(sums_.get(), channels, static_cast<G*>(call_.grad_gradients) + offset);
  }

  const CamBackward& call_;
  const Cam& cam_;
  index_t block_, unit_;
  Repetition<Acc> repetition_;
  Buffer<Acc> delta_, sums_, weights_;
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
