// Stage cam: heatmaps ReLU(sum_c weight_c A_c) of one sample, features and gradients each read once.
//
// Loops are flat or along whole rows, so that they vectorise for any H x W: with 7 x 7 maps a row of 49 floats does not
// fill vectors, a block of 16 channels does.
#pragma once

#include "../common/gradients.h"
#include "dtypes.h"
#include "executor.h"
#include "stream.h"

namespace cgc::CGC_ISA {

// Channels of [C, P] handled as one flat block: whole cache lines of T, about 4 KiB.
template <class T>
index_t block_channels(index_t channels, index_t positions) {
  const index_t row = positions * index_t(sizeof(T));
  index_t lines = 1;
  while (lines < 64 && (lines * row) % 64 != 0) lines *= 2;
  const index_t repeat = maximum(index_t(1), index_t(4096) / (lines * row));
  return minimum(channels, lines * row > 16384 ? index_t(1) : lines * repeat);
}

// sums[r] = sum_i scale(i) values[r][i] of at most 4 rows of `count` values; four at once, since each horizontal sum
// waits for its own chain of additions.
template <class Acc, class T, class F>
void row_sums(const T* values, index_t count, index_t rows, F&& scale, Acc* sums) {
  if (rows == 4) {
    const T *b = values + count, *c = b + count, *d = c + count;
    Acc first = 0, second = 0, third = 0, fourth = 0;
#pragma omp simd reduction(+ : first, second, third, fourth)
    for (index_t i = 0; i < count; ++i) {
      const Acc factor = scale(i);
      first += factor * Acc(load(values[i]));
      second += factor * Acc(load(b[i]));
      third += factor * Acc(load(c[i]));
      fourth += factor * Acc(load(d[i]));
    }
    sums[0] = first, sums[1] = second, sums[2] = third, sums[3] = fourth;
    return;
  }
  for (index_t r = 0; r < rows; ++r) {
    Acc sum = 0;
#pragma omp simd reduction(+ : sum)
    for (index_t i = 0; i < count; ++i) sum += scale(i) * Acc(load(values[r * count + i]));
    sums[r] = sum;
  }
}

template <class A, class G, class Acc>
class CamSample {
 public:
  explicit CamSample(const Cam& call)
      : call_(call),
        block_(block_channels<A>(call.channels, call.positions)),
        scratch_(maximum(block_ * call.positions, call.channels)) {}

  void operator()(index_t sample) {
    const index_t channels = call_.channels, positions = call_.positions;
    const A* features = static_cast<const A*>(call_.features) + sample * channels * positions;
    const G* gradients = static_cast<const G*>(call_.gradients) +
                         sample * channels * (call_.weighting == Weighting::pooled ? 1 : positions);
    Acc* heatmap = static_cast<Acc*>(call_.heatmaps) + sample * positions;
    Acc* weights = static_cast<Acc*>(call_.weights) + (call_.weighting == Weighting::mean ? sample * channels : 0);
    for (index_t p = 0; p < positions; ++p) heatmap[p] = 0;
    if (call_.channels_last) {
      last(features, gradients, weights, heatmap);
    } else {
      first(features, gradients, weights, heatmap);
    }
    for (index_t p = 0; p < positions; ++p) heatmap[p] = relu(heatmap[p]);
  }

 private:
  // [C, P] in memory.
  void first(const A* features, const G* gradients, Acc* weights, Acc* heatmap) {
    const index_t channels = call_.channels, positions = call_.positions;
    if (call_.weighting == Weighting::elementwise) return elementwise(features, gradients, heatmap);
    for (index_t c = 0; c < channels; c += 4) {
      const index_t rows = minimum(index_t(4), channels - c);
      Acc weight[4] = {0, 0, 0, 0};
      if (call_.weighting == Weighting::mean) {
        row_sums<Acc>(gradients + c * positions, positions, rows, [](index_t) { return Acc(1); }, weight);
        for (index_t r = 0; r < rows; ++r) weights[c + r] = weight[r] /= Acc(positions);
      } else {
        for (index_t r = 0; r < rows; ++r) weight[r] = Acc(load(gradients[c + r]));
      }
      add_rows(features + c * positions, rows, weight, heatmap);
    }
  }

  void add_rows(const A* a, index_t rows, const Acc* weight, Acc* heatmap) const {
    const index_t n = call_.positions;
    if (rows < 4) {
      for (index_t r = 0; r < rows; ++r) {
#pragma omp simd
        for (index_t p = 0; p < n; ++p) heatmap[p] += weight[r] * Acc(load(a[r * n + p]));
      }
      return;
    }
    const A *b = a + n, *c = b + n, *d = c + n;
#pragma omp simd
    for (index_t p = 0; p < n; ++p) {
      heatmap[p] += (weight[0] * Acc(load(a[p])) + weight[1] * Acc(load(b[p]))) +
                    (weight[2] * Acc(load(c[p])) + weight[3] * Acc(load(d[p])));
    }
  }

  void elementwise(const A* features, const G* gradients, Acc* heatmap) {
    const index_t total = call_.channels * call_.positions, size = block_ * call_.positions;
    Acc* sums = scratch_;
    for (index_t i = 0; i < size; ++i) sums[i] = 0;
    for (index_t start = 0; start < total; start += size) {
      const index_t count = minimum(size, total - start);
      const A* a = features + start;
      const G* g = gradients + start;
#pragma omp simd
      for (index_t i = 0; i < count; ++i) sums[i] += Acc(load(a[i])) * Acc(load(g[i]));
    }
    for (index_t r = 0; r < block_; ++r) {
      for (index_t p = 0; p < call_.positions; ++p) heatmap[p] += sums[r * call_.positions + p];
    }
  }

  // [P, C] in memory.
  void last(const A* features, const G* gradients, Acc* weights, Acc* heatmap) {
    const index_t channels = call_.channels, positions = call_.positions;
    if (call_.weighting == Weighting::mean) column_means(gradients, weights);
    for (index_t p = 0; p < positions; ++p) {
      const A* a = features + p * channels;
      switch (call_.weighting) {
        case Weighting::pooled:
          heatmap[p] = dot(a, gradients);
          break;
        case Weighting::mean:
          heatmap[p] = dot(a, weights);
          break;
        case Weighting::elementwise:
          heatmap[p] = dot(a, gradients + p * channels);
          break;
      }
    }
  }

  void column_means(const G* gradients, Acc* weights) const {
    const index_t channels = call_.channels;
    const Acc share = Acc(1) / Acc(call_.positions);
    for (index_t c = 0; c < channels; ++c) weights[c] = 0;
    for (index_t p = 0; p < call_.positions; ++p) {
      const G* g = gradients + p * channels;
#pragma omp simd
      for (index_t c = 0; c < channels; ++c) weights[c] += Acc(load(g[c]));
    }
    for (index_t c = 0; c < channels; ++c) weights[c] *= share;
  }

  template <class W>
  Acc dot(const A* a, const W* w) const {
    Acc sum = 0;
#pragma omp simd reduction(+ : sum)
    for (index_t c = 0; c < call_.channels; ++c) sum += Acc(load(a[c])) * Acc(load(w[c]));
    return sum;
  }

  const Cam& call_;
  index_t block_;
  Buffer<Acc> scratch_;
};

// Writes a gradient block by block, past the caches where it is large.
template <class T>
class Writer {
 public:
  Writer(void* gradient, index_t total, index_t block)
      : gradient_(static_cast<T*>(gradient)),
        streams_(gradient != nullptr && total * index_t(sizeof(T)) >= stream_threshold_bytes),
        staged_(streams_ ? block : 0) {}

  bool wanted() const { return gradient_ != nullptr; }
  T* begin(index_t offset) { return streams_ ? staged_.get() : gradient_ + offset; }
  void commit(index_t offset, index_t count) {
    if (streams_) stream_copy(gradient_ + offset, staged_, count * index_t(sizeof(T)));
  }

 private:
  T* gradient_;
  bool streams_;
  Buffer<T> staged_;
};

template <class A, class G, class Acc>
class CamBackwardSample {
 public:
  explicit CamBackwardSample(const CamBackward& call)
      : call_(call),
        cam_(call.forward),
        block_(cam_.channels_last ? 1 : block_channels<A>(cam_.channels, cam_.positions)),
        unit_(cam_.channels_last ? cam_.channels : block_ * cam_.positions),
        memory_(block_ * cam_.positions + cam_.channels),
        delta_(memory_.take(block_ * cam_.positions)),
        sums_(memory_.take(cam_.channels)),
        grad_features_(call.grad_features, cam_.batch * cam_.channels * cam_.positions, unit_),
        grad_gradients_(call.grad_gradients, gradient_count() * cam_.batch, unit_) {}

  // grad_heatmap: [P], of this sample.
  void operator()(index_t sample, const Acc* grad_heatmap) {
    const Acc* heatmap = static_cast<const Acc*>(cam_.heatmaps) + sample * cam_.positions;
    for (index_t r = 0; r < block_; ++r) {
      for (index_t p = 0; p < cam_.positions; ++p) {
        delta_[r * cam_.positions + p] = relu_gradient(heatmap[p], grad_heatmap[p]);
      }
    }
    const index_t offset = sample * cam_.channels * cam_.positions;
    const A* features = static_cast<const A*>(cam_.features) + offset;
    const G* gradients = static_cast<const G*>(cam_.gradients) + sample * gradient_count();
    if (cam_.weighting == Weighting::elementwise) {
      elementwise(features, gradients, offset);
    } else {
      pooled(features, gradients, offset, sample * cam_.channels);
    }
    stream_fence();
  }

 private:
  index_t gradient_count() const {
    return cam_.channels * (cam_.weighting == Weighting::elementwise ? cam_.positions : 1);
  }

  void elementwise(const A* features, const G* gradients, index_t offset) {
    const index_t total = cam_.channels * cam_.positions;
    for (index_t start = 0, row = 0; start < total; start += unit_, ++row) {
      const index_t count = minimum(unit_, total - start);
      if (grad_features_.wanted()) {
        multiply(gradients + start, row, count, grad_features_.begin(offset + start));
        grad_features_.commit(offset + start, count);
      }
      if (grad_gradients_.wanted()) {
        multiply(features + start, row, count, grad_gradients_.begin(offset + start));
        grad_gradients_.commit(offset + start, count);
      }
    }
  }

  // out = in * delta over one block of [C, P], or over one row of [P, C], where delta is one number.
  template <class In, class Out>
  void multiply(const In* in, index_t row, index_t count, Out* out) const {
    const Acc* delta = delta_;
    if (cam_.channels_last) {
      const Acc d = delta[row];
#pragma omp simd
      for (index_t i = 0; i < count; ++i) out[i] = store<Out>(Acc(load(in[i])) * d);
    } else {
#pragma omp simd
      for (index_t i = 0; i < count; ++i) out[i] = store<Out>(Acc(load(in[i])) * delta[i]);
    }
  }

  // Block by block both gradients, so that reading and writing overlap.
  void pooled(const A* features, const G* gradients, index_t offset, index_t gradient_offset) {
    const index_t total = cam_.channels * cam_.positions;
    for (index_t c = 0; c < cam_.channels; ++c) sums_[c] = 0;
    for (index_t start = 0, row = 0; start < total; start += unit_, ++row) {
      const index_t count = minimum(unit_, total - start);
      if (grad_features_.wanted()) {
        A* out = grad_features_.begin(offset + start);
        if (cam_.channels_last) {
          multiply(gradients, row, count, out);
        } else {
          outer(gradients + row * block_, count / cam_.positions, out);
        }
        grad_features_.commit(offset + start, count);
      }
      if (grad_gradients_.wanted()) add_products(features + start, row, count);
    }
    if (!grad_gradients_.wanted()) return;
    G* out = static_cast<G*>(call_.grad_gradients) + gradient_offset;
    for (index_t c = 0; c < cam_.channels; ++c) out[c] = store<G>(sums_[c]);
  }

  void outer(const G* weights, index_t rows, A* out) const {
    const Acc* delta = delta_;
    for (index_t r = 0; r < rows; ++r) {
      const Acc w = Acc(load(weights[r]));
#pragma omp simd
      for (index_t p = 0; p < cam_.positions; ++p) out[r * cam_.positions + p] = store<A>(w * delta[p]);
    }
  }

  // Adds features * delta, summed over the positions of the block, to the channels' sums.
  void add_products(const A* features, index_t row, index_t count) const {
    const Acc* delta = delta_;
    if (cam_.channels_last) {
      const Acc d = delta[row];
      Acc* sums = sums_;
#pragma omp simd
      for (index_t c = 0; c < count; ++c) sums[c] += Acc(load(features[c])) * d;
      return;
    }
    const index_t positions = cam_.positions, rows = count / positions;
    for (index_t r = 0; r < rows; r += 4) {
      row_sums<Acc>(
          features + r * positions, positions, minimum(index_t(4), rows - r), [=](index_t p) { return delta[p]; },
          sums_ + row * block_ + r);
    }
  }

  const CamBackward& call_;
  const Cam& cam_;
  index_t block_, unit_;
  Parts<Acc> memory_;
  Acc *const delta_, *const sums_;
  Writer<A> grad_features_;
  Writer<G> grad_gradients_;
};

template <class A, class G, class Acc>
void cam(const Cam& call, ParallelFor parallel_for) {
  run(parallel_for, call.batch, 1, [&](index_t begin, index_t end) {
    CamSample<A, G, Acc> sample(call);
    for (index_t i = begin; i < end; ++i) sample(i);
  });
}

template <class A, class G, class Acc>
void cam_backward(const CamBackward& call, ParallelFor parallel_for) {
  run(parallel_for, call.forward.batch, 1, [&](index_t begin, index_t end) {
    CamBackwardSample<A, G, Acc> sample(call);
    const Acc* grads = static_cast<const Acc*>(call.grad_heatmaps);
    for (index_t i = begin; i < end; ++i) sample(i, grads + i * call.forward.positions);
  });
}

}  // namespace cgc::CGC_ISA
