// Random calls of the CPU kernels, of plain memory to the byte and on plain threads: no torch, so that sanitizers see
// all of it, and a cross-compiler can make it. Every result must be the same on one thread and on four, to the last
// bit.
//   calls FIRST_SEED COUNT
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../../csrc/cpu/kernels.h"

namespace cgc {
namespace {

using Index = std::int64_t;
const Kernels& kernels = baseline::kernels();

void serial(Index count, Index, Body body, void* context) {
  if (count > 0) body(0, count, context);
}

void threaded(Index count, Index grain, Body body, void* context) {
  const Index parts = std::max<Index>(1, std::min<Index>(4, count / std::max<Index>(grain, 1)));
  std::vector<std::thread> threads;
  for (Index part = 0; part < parts; ++part) {
    const Index begin = count * part / parts, end = count * (part + 1) / parts;
    if (begin < end) threads.emplace_back([=] { body(begin, end, context); });
  }
  for (std::thread& thread : threads) thread.join();
}

Index bytes_of(Type type) { return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2; }

// Memory of exactly its size, and so each of its own.
struct Memory {
  explicit Memory(Index bytes) : bytes(bytes), data(bytes == 0 ? nullptr : static_cast<char*>(std::malloc(bytes))) {
    if (bytes > 0) std::memset(data, 0, std::size_t(bytes));
  }
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;
  const Index bytes;
  char* const data;
};

class Calls {
 public:
  explicit Calls(unsigned seed) : random_(seed) {
    batch_ = upto(9), channels_ = upto(70), height_ = upto(9), width_ = upto(9);
    size_h_ = upto(33), size_w_ = upto(33);
    objective_ = Objective(upto(objectives) - 1);
    features_type_ = Type(upto(4) - 1);
    const bool low = bytes_of(features_type_) == 2;
    gradients_type_ = low && upto(2) == 1 ? Type::float32 : features_type_;
    acc_ = features_type_ == Type::float64 ? Type::float64 : Type::float32;
    weighting_ = Weighting(upto(3) - 1);
    channels_last_ = upto(2) == 1;
  }

  // Every kernel, forward and backward; false where one is not the same on four threads.
  bool run() {
    const Index positions = height_ * width_, maps = batch_ * positions;
    for (int view = 0; view < 2; ++view) {
      cams_[view] = {batch_,
                     channels_,
                     positions,
                     features_type_,
                     gradients_type_,
                     weighting_,
                     channels_last_,
                     values(features_type_, maps * channels_),
                     values(gradients_type_, weighting_ == Weighting::pooled ? batch_ * channels_ : maps * channels_),
                     output(acc_, maps),
                     output(acc_, weighting_ == Weighting::mean ? batch_ * channels_ : 0)};
    }
    const Index row = objective_ == Objective::mse ? 0 : maps;
    const Type state = objective_ == Objective::mse ? Type::float64 : acc_;
    Resample resample{};
    resample.batch = batch_, resample.height = height_, resample.width = width_;
    resample.size_h = size_h_, resample.size_w = size_w_, resample.eps = 1e-8;
    resample.objective = objective_, resample.float64 = acc_ == Type::float64;
    transform(resample);
    resample.heatmaps = cams_[0].heatmaps, resample.aug_heatmaps = cams_[1].heatmaps;
    resample.rows = output(acc_, row), resample.keys = output(acc_, row);
    resample.positives = static_cast<double*>(output(Type::float64, batch_));
    resample.state = output(state, 3 * maps);
    const Index length = row / batch_;
    Contrast contrast{batch_,
                      length,
                      0,
                      batch_,
                      0.5,
                      resample.float64,
                      resample.rows,
                      resample.keys,
                      resample.positives,
                      static_cast<double*>(output(Type::float64, batch_))};
    const Scalar loss{output(Type::float64, 1), true};
    const Scalar grad_loss{one(), true};
    const Cgc cgc{{cams_[0], cams_[1]}, resample, contrast, 0.7};
    bool same = alike([&](ParallelFor on) { kernels.cgc(cgc, loss, on); });
    CgcBackward back{};
    for (int view = 0; view < 2; ++view) back.views[view] = backward(cams_[view], nullptr);
    back.resample.forward = resample, back.contrast.forward = contrast;
    back.contrast.grad_loss = grad_loss, back.consistency = 0.7;
    same &= alike([&](ParallelFor on) { kernels.cgc_backward(back, on); });

    // The stages by themselves, and what one rank of several contrasts; rows may be empty.
    for (const Cam& cam : cams_) {
      same &= alike([&](ParallelFor on) { kernels.cam(cam, on); });
      const CamBackward call = backward(cam, values(acc_, maps));
      same &= alike([&](ParallelFor on) { kernels.cam_backward(call, on); });
    }
    same &= alike([&](ParallelFor on) { kernels.resample(resample, on); });
    const ResampleBackward of_resample{resample,           values(acc_, row),
                                       values(acc_, row),  static_cast<double*>(values(Type::float64, batch_)),
                                       output(acc_, maps), output(acc_, maps)};
    same &= alike([&](ParallelFor on) { kernels.resample_backward(of_resample, on); });
    same &= alike([&](ParallelFor on) { kernels.contrast(contrast, loss, on); });
    ContrastBackward share{};
    share.forward = contrast, share.grad_loss = grad_loss;
    share.forward.first = upto(batch_) - 1;
    share.forward.count = upto(batch_ - share.forward.first);
    share.grad_rows = output(acc_, share.forward.count * length);
    share.grad_keys = output(acc_, share.forward.count * length);
    share.grad_positives = static_cast<double*>(output(Type::float64, share.forward.count));
    same &= alike([&](ParallelFor on) { kernels.contrast_backward(share, on); });
    return same;
  }

 private:
  Index upto(Index most) { return std::uniform_int_distribution<Index>(1, most)(random_); }

  void* output(Type type, Index count) {
    outputs_.push_back(std::make_unique<Memory>(count * bytes_of(type)));
    return outputs_.back()->data;
  }

  // Numbers of [-1, 1), the narrow ones by their bits.
  void* values(Type type, Index count) {
    inputs_.push_back(std::make_unique<Memory>(count * bytes_of(type)));
    void* data = inputs_.back()->data;
    for (Index i = 0; i < count; ++i) {
      const double value = std::uniform_real_distribution<double>(-1, 1)(random_);
      if (type == Type::float64) static_cast<double*>(data)[i] = value;
      if (type == Type::float32) static_cast<float*>(data)[i] = float(value);
      if (bytes_of(type) == 2) {
        const unsigned one = type == Type::float16 ? 0x3c00 : 0x3f80;
        static_cast<std::uint16_t*>(data)[i] = std::uint16_t((value < 0 ? 0x8000 : 0) | (one - unsigned(upto(600))));
      }
    }
    return data;
  }

  void* one() {
    void* data = values(Type::float64, 1);
    *static_cast<double*>(data) = 1;
    return data;
  }

  // A crop inside the view or anywhere, or a matrix.
  void transform(Resample& call) {
    if (upto(3) == 1) {
      call.inverses = static_cast<double*>(values(Type::float64, 9 * batch_));
      return;
    }
    const bool inside = upto(4) > 1;
    for (int field = 0; field < crop_fields; ++field) {
      inputs_.push_back(std::make_unique<Memory>(8 * batch_));
      auto* data = reinterpret_cast<Index*>(inputs_.back()->data);
      const Index size = field % 2 == 0 ? size_h_ : size_w_;
      for (Index i = 0; i < batch_; ++i) {
        data[i] = field < crop_height ? upto(size) - 1 : field < crop_flip ? upto(size) : upto(2) - 1;
        if (!inside && field < crop_flip) data[i] = (upto(2) == 1 ? -1 : 1) * (Index(1) << (upto(62) - 1));
      }
      call.crops[field] = {data, 1, Integer::int64};
    }
  }

  CamBackward backward(const Cam& forward, const void* grad_heatmaps) {
    CamBackward call{forward, grad_heatmaps, nullptr, nullptr};
    if (forward.weighting == Weighting::mean) {  // the weights come back as pooled gradients
      call.forward.weighting = Weighting::pooled;
      call.forward.gradients = forward.weights, call.forward.gradients_type = acc_;
    }
    const Index pooled = batch_ * channels_, whole = pooled * height_ * width_;
    call.grad_features = output(features_type_, whole);
    call.grad_gradients =
        output(call.forward.gradients_type, call.forward.weighting == Weighting::pooled ? pooled : whole);
    return call;
  }

  // Whether a call leaves the same bits in all outputs on one thread and on four.
  template <class F>
  bool alike(F&& call) {
    call(&serial);
    std::vector<std::vector<char>> before;
    for (const auto& output : outputs_) before.emplace_back(output->data, output->data + output->bytes);
    call(&threaded);
    bool same = true;
    for (std::size_t i = 0; i < before.size(); ++i) {
      same &= std::equal(before[i].begin(), before[i].end(), outputs_[i]->data);
    }
    return same;
  }

  std::mt19937 random_;
  Index batch_, channels_, height_, width_, size_h_, size_w_;
  Objective objective_;
  Type features_type_, gradients_type_, acc_;
  Weighting weighting_;
  bool channels_last_;
  Cam cams_[2];
  std::vector<std::unique_ptr<Memory>> inputs_, outputs_;
};

}  // namespace
}  // namespace cgc

int main(int, char** arguments) {
  const unsigned first = unsigned(std::atoi(arguments[1])), count = unsigned(std::atoi(arguments[2]));
  for (unsigned seed = first; seed < first + count; ++seed) {
    if (!cgc::Calls(seed).run()) {
      std::printf("seed %u: four threads give other bits than one\n", seed);
      return 1;
    }
  }
  std::printf("%u calls of every kernel: right\n", count);
}
