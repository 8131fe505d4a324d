// Registers the CPU kernels through the LibTorch stable ABI; schemas, fake kernels and autograd are in cgc_kernels/ops.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cgc {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Index = std::int64_t;

#if CGC_X86_DISPATCH
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// The widest set the processor has; CGC_CPU_ISA=baseline|avx2 asks for less, so that tests run every path on one
// machine.
const Kernels& choose() {
#if CGC_X86_DISPATCH
  const char* wish = std::getenv("CGC_CPU_ISA");
  const bool any = wish == nullptr || *wish == '\0';
  if (has_avx512() && (any || std::strcmp(wish, "avx512") == 0)) return avx512::kernels();
  if (has_avx2() && (any || std::strcmp(wish, "baseline") != 0)) return avx2::kernels();
#endif
  return baseline::kernels();
}

const Kernels& chosen() {
  static const Kernels& table = choose();
  return table;
}

void parallel_for(Index count, Index grain, Body body, void* context) {
  torch::stable::parallel_for(0, count, grain, [=](Index begin, Index end) { body(begin, end, context); });
}

std::string instruction_set() { return chosen().name; }

// ---- Tensors to plain structures. The Python side sends what the kernels take; what it cannot have checked is here.

Type type_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Type::float32;
    case ScalarType::Double:
      return Type::float64;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    case ScalarType::Half:
      return Type::float16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
  }
  return Type::float32;
}

void check(const Tensor& tensor, const char* name, std::initializer_list<Index> shape) {
  bool same = tensor.dim() == Index(shape.size());
  Index dimension = 0;
  for (const Index size : shape) same = same && tensor.size(dimension++) == size;
  STD_TORCH_CHECK(same, name, " must have the shape that the other arguments imply");
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous(), name, " must be a contiguous CPU tensor");
}

void check(const Tensor& tensor, const char* name, std::initializer_list<Index> shape, ScalarType type) {
  check(tensor, name, shape);
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " must have the dtype that the other arguments imply");
}

// As torch sees it: the stride of a dimension of length 1 means nothing.
bool is_channels_last(const Tensor& tensor) {
  Index expected = 1;
  for (const Index dimension : {1, 3, 2, 0}) {
    if (tensor.size(dimension) != 1 && tensor.stride(dimension) != expected) return false;
    expected *= tensor.size(dimension);
  }
  return true;
}

ScalarType accumulator(const Tensor& features) {
  return features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor make(std::initializer_list<Index> shape, ScalarType type) {
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
}

// Asks for huge pages: first touching fresh memory a page at a time costs more than computing what is written there.
void advise_huge_pages(void* data, Index bytes) {
#if defined(__linux__)
  constexpr std::uintptr_t huge = std::uintptr_t(2) << 20;
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(data) + huge - 1) / huge * huge;
  const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(data) + std::uintptr_t(bytes)) / huge * huge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// An uninitialised gradient for `tensor`; empty where none is asked for.
Tensor wanted(const Tensor& tensor, bool needed) {
  if (!needed) return make({0}, tensor.scalar_type());
  Tensor gradient = torch::stable::empty_like(tensor);
  advise_huge_pages(gradient.mutable_data_ptr(), gradient.numel() * Index(gradient.element_size()));
  return gradient;
}

void* writable(const Tensor& tensor) { return tensor.numel() == 0 ? nullptr : tensor.mutable_data_ptr(); }

Cam describe(const Tensor& features, const Tensor& gradients, bool elementwise) {
  STD_TORCH_CHECK(features.dim() == 4 && features.is_cpu() && features.numel() > 0,
                  "features must be a CPU tensor [B, C, H, W] with no empty dimension");
  Cam call{};
  call.batch = features.size(0);
  call.channels = features.size(1);
  call.positions = features.size(2) * features.size(3);
  call.features_type = type_of(features, "features");
  call.gradients_type = type_of(gradients, "gradients");
  call.channels_last = !features.is_contiguous();
  STD_TORCH_CHECK(!call.channels_last || is_channels_last(features), "features must be contiguous or channels_last");
  const bool low = call.features_type == Type::bfloat16 || call.features_type == Type::float16;
  STD_TORCH_CHECK(call.gradients_type == call.features_type || (low && call.gradients_type == Type::float32),
                  "gradients must have the features' dtype, or float32 beside bfloat16 and float16");
  if (gradients.dim() == 2) {
    check(gradients, "gradients", {call.batch, call.channels});
    call.weighting = Weighting::pooled;
  } else {
    const bool like = gradients.dim() == 4 && gradients.is_cpu() && gradients.size(0) == call.batch &&
                      gradients.size(1) == call.channels && gradients.size(2) == features.size(2) &&
                      gradients.size(3) == features.size(3) &&
                      (call.channels_last ? is_channels_last(gradients) : gradients.is_contiguous());
    STD_TORCH_CHECK(like, "gradients must have the shape and memory format of the features, or be [B, C]");
    call.weighting = elementwise ? Weighting::elementwise : Weighting::mean;
  }
  call.features = features.const_data_ptr();
  call.gradients = gradients.const_data_ptr();
  return call;
}

// Both views must share shape and types: the kernels take them from the first.
void check_alike(const Tensor& features, const Tensor& aug_features, const Cam& view, const Cam& aug_view) {
  bool same = view.features_type == aug_view.features_type && view.gradients_type == aug_view.gradients_type &&
              view.weighting == aug_view.weighting;
  for (Index dimension = 0; dimension < 4; ++dimension) {
    same = same && features.size(dimension) == aug_features.size(dimension);
  }
  STD_TORCH_CHECK(same, "aug_features and aug_gradients must have the shapes and dtypes of features and gradients");
}

Resample describe(Index batch, Index height, Index width, bool float64, const Tensor& transform, Index size_h,
                  Index size_w, double eps, Index objective) {
  Resample call{};
  call.batch = batch;
  call.height = height;
  call.width = width;
  call.size_h = size_h;
  call.size_w = size_w;
  call.eps = eps;
  call.objective = Objective(objective);
  call.float64 = float64;
  STD_TORCH_CHECK(objective >= 0 && objective <= 2, "objective must be 0 (released), 1 (paper) or 2 (mse)");
  constexpr Index largest = Index(1) << 16;
  STD_TORCH_CHECK(size_h >= 1 && size_w >= 1 && size_h <= largest && size_w <= largest,
                  "height and width of the view must be 1 to 65536 pixels");
  if (transform.dim() == 2) {
    check(transform, "transform", {batch, 5}, ScalarType::Long);
    call.crops = static_cast<const Index*>(transform.const_data_ptr());
  } else {
    check(transform, "transform", {batch, 3, 3}, ScalarType::Double);
    call.inverses = static_cast<const double*>(transform.const_data_ptr());
  }
  return call;
}

double* doubles(const Tensor& tensor) { return static_cast<double*>(tensor.mutable_data_ptr()); }

double scalar(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.numel() == 1 && (type == ScalarType::Float || type == ScalarType::Double),
                  "grad_loss must be one float32 or float64 number on the CPU");
  return tensor.scalar_type() == ScalarType::Double ? *static_cast<const double*>(tensor.const_data_ptr())
                                                    : *static_cast<const float*>(tensor.const_data_ptr());
}

Tensor scalar_tensor(double value, ScalarType type) {
  Tensor tensor = make({}, type);
  if (type == ScalarType::Double) {
    *static_cast<double*>(tensor.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(tensor.mutable_data_ptr()) = float(value);
  }
  return tensor;
}

// ---- Operators

std::tuple<Tensor, Tensor> cam(const Tensor& features, const Tensor& gradients, bool elementwise) {
  Cam call = describe(features, gradients, elementwise);
  const ScalarType type = accumulator(features);
  Tensor heatmaps = make({call.batch, features.size(2), features.size(3)}, type);
  Tensor weights = call.weighting == Weighting::mean ? make({call.batch, call.channels}, type) : make({0}, type);
  call.heatmaps = writable(heatmaps);
  call.weights = writable(weights);
  chosen().cam(call, &parallel_for);
  return {heatmaps, weights};
}

std::tuple<Tensor, Tensor> cam_backward(const Tensor& grad_heatmaps, const Tensor& heatmaps, const Tensor& features,
                                        const Tensor& gradients, bool need_features, bool need_gradients) {
  CamBackward call{};
  call.forward = describe(features, gradients, true);
  const ScalarType type = accumulator(features);
  check(heatmaps, "heatmaps", {call.forward.batch, features.size(2), features.size(3)}, type);
  check(grad_heatmaps, "grad_heatmaps", {call.forward.batch, features.size(2), features.size(3)}, type);
  call.forward.heatmaps = heatmaps.mutable_data_ptr();
  call.grad_heatmaps = grad_heatmaps.const_data_ptr();
  Tensor grad_features = wanted(features, need_features), grad_gradients = wanted(gradients, need_gradients);
  call.grad_features = writable(grad_features);
  call.grad_gradients = writable(grad_gradients);
  chosen().cam_backward(call, &parallel_for);
  return {grad_features, grad_gradients};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> resample(const Tensor& heatmaps, const Tensor& aug_heatmaps,
                                                    const Tensor& transform, Index size_h, Index size_w, double eps,
                                                    Index objective) {
  STD_TORCH_CHECK(heatmaps.dim() == 3 && heatmaps.numel() > 0, "heatmaps must be [B, H, W] with no empty dimension");
  const ScalarType type = heatmaps.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "heatmaps must be float32 or float64");
  const Index batch = heatmaps.size(0), height = heatmaps.size(1), width = heatmaps.size(2);
  check(heatmaps, "heatmaps", {batch, height, width});
  check(aug_heatmaps, "aug_heatmaps", {batch, height, width}, type);
  Resample call = describe(batch, height, width, type == ScalarType::Double, transform, size_h, size_w, eps, objective);
  const Index length = call.objective == Objective::mse ? 0 : height * width;
  Tensor rows = make({batch, length}, type), keys = make({batch, length}, type);
  Tensor positives = make({batch}, ScalarType::Double), state = make({batch, 3, height, width}, ScalarType::Double);
  call.heatmaps = heatmaps.const_data_ptr();
  call.aug_heatmaps = aug_heatmaps.const_data_ptr();
  call.rows = writable(rows);
  call.keys = writable(keys);
  call.positives = doubles(positives);
  call.state = doubles(state);
  chosen().resample(call, &parallel_for);
  return {rows, keys, positives, state};
}

std::tuple<Tensor, Tensor> resample_backward(const Tensor& grad_rows, const Tensor& grad_keys,
                                             const Tensor& grad_positives, const Tensor& heatmaps,
                                             const Tensor& aug_heatmaps, const Tensor& transform, const Tensor& state,
                                             Index size_h, Index size_w, double eps, Index objective) {
  STD_TORCH_CHECK(heatmaps.dim() == 3 && heatmaps.numel() > 0, "heatmaps must be [B, H, W] with no empty dimension");
  const Index batch = heatmaps.size(0), height = heatmaps.size(1), width = heatmaps.size(2);
  const ScalarType type = heatmaps.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "heatmaps must be float32 or float64");
  ResampleBackward call{};
  call.forward = describe(batch, height, width, type == ScalarType::Double, transform, size_h, size_w, eps, objective);
  const Index length = call.forward.objective == Objective::mse ? 0 : height * width;
  check(heatmaps, "heatmaps", {batch, height, width});
  check(aug_heatmaps, "aug_heatmaps", {batch, height, width}, type);
  check(grad_rows, "grad_rows", {batch, length}, type);
  check(grad_keys, "grad_keys", {batch, length}, type);
  check(grad_positives, "grad_positives", {batch}, ScalarType::Double);
  check(state, "state", {batch, 3, height, width}, ScalarType::Double);
  call.forward.heatmaps = heatmaps.const_data_ptr();
  call.forward.aug_heatmaps = aug_heatmaps.const_data_ptr();
  call.forward.state = doubles(state);
  call.grad_rows = grad_rows.const_data_ptr();
  call.grad_keys = grad_keys.const_data_ptr();
  call.grad_positives = doubles(grad_positives);
  Tensor grad_heatmaps = torch::stable::empty_like(heatmaps), grad_aug = torch::stable::empty_like(aug_heatmaps);
  call.grad_heatmaps = grad_heatmaps.mutable_data_ptr();
  call.grad_aug_heatmaps = grad_aug.mutable_data_ptr();
  chosen().resample_backward(call, &parallel_for);
  return {grad_heatmaps, grad_aug};
}

Contrast describe(const Tensor& rows, const Tensor& keys, const Tensor& positives, const Tensor& row_losses,
                  double temperature) {
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(0) > 0, "rows must be [B, N] with B > 0");
  const ScalarType type = rows.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "rows must be float32 or float64");
  const Index batch = rows.size(0), length = rows.size(1);
  check(rows, "rows", {batch, length});
  check(keys, "keys", {batch, length}, type);
  check(positives, "positives", {batch}, ScalarType::Double);
  check(row_losses, "row_losses", {batch}, ScalarType::Double);
  return {batch,
          length,
          temperature,
          type == ScalarType::Double,
          rows.const_data_ptr(),
          keys.const_data_ptr(),
          doubles(positives),
          doubles(row_losses)};
}

std::tuple<Tensor, Tensor> contrast(const Tensor& rows, const Tensor& keys, const Tensor& positives,
                                    double temperature) {
  STD_TORCH_CHECK(rows.dim() == 2, "rows must be [B, N]");
  Tensor row_losses = make({rows.size(0)}, ScalarType::Double);
  const double loss = chosen().contrast(describe(rows, keys, positives, row_losses, temperature), &parallel_for);
  return {scalar_tensor(loss, rows.scalar_type()), row_losses};
}

std::tuple<Tensor, Tensor, Tensor> contrast_backward(const Tensor& grad_loss, const Tensor& rows, const Tensor& keys,
                                                     const Tensor& positives, const Tensor& row_losses,
                                                     double temperature) {
  Tensor grad_rows = torch::stable::empty_like(rows), grad_keys = torch::stable::empty_like(keys);
  Tensor grad_positives = torch::stable::empty_like(positives);
  const ContrastBackward call{describe(rows, keys, positives, row_losses, temperature), scalar(grad_loss),
                              grad_rows.mutable_data_ptr(), grad_keys.mutable_data_ptr(), doubles(grad_positives)};
  chosen().contrast_backward(call, &parallel_for);
  return {grad_rows, grad_keys, grad_positives};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> cgc(
    const Tensor& features, const Tensor& gradients, const Tensor& aug_features, const Tensor& aug_gradients,
    const Tensor& transform, Index size_h, Index size_w, double temperature, bool elementwise, Index objective,
    double consistency, double eps) {
  Cgc call{};
  call.views[0] = describe(features, gradients, elementwise);
  call.views[1] = describe(aug_features, aug_gradients, elementwise);
  check_alike(features, aug_features, call.views[0], call.views[1]);
  const Index batch = call.views[0].batch, channels = call.views[0].channels, positions = call.views[0].positions;
  const Index height = features.size(2), width = features.size(3);
  const ScalarType type = accumulator(features);
  const bool float64 = type == ScalarType::Double;
  const bool saves_weights = call.views[0].weighting == Weighting::mean;
  Tensor heatmaps = make({2, batch, height, width}, type);
  Tensor weights = saves_weights ? make({2, batch, channels}, type) : make({2, 0}, type);
  for (Index view = 0; view < 2; ++view) {
    const Index item = float64 ? 8 : 4;
    call.views[view].heatmaps = static_cast<char*>(heatmaps.mutable_data_ptr()) + view * batch * positions * item;
    if (saves_weights) {
      call.views[view].weights = static_cast<char*>(weights.mutable_data_ptr()) + view * batch * channels * item;
    }
  }
  call.resample = describe(batch, height, width, float64, transform, size_h, size_w, eps, objective);
  const Index length = call.resample.objective == Objective::mse ? 0 : positions;
  Tensor rows = make({batch, length}, type), keys = make({batch, length}, type);
  Tensor positives = make({batch}, ScalarType::Double), row_losses = make({batch}, ScalarType::Double);
  Tensor state = make({batch, 3, height, width}, ScalarType::Double);
  call.resample.heatmaps = call.views[0].heatmaps;
  call.resample.aug_heatmaps = call.views[1].heatmaps;
  call.resample.rows = writable(rows);
  call.resample.keys = writable(keys);
  call.resample.positives = doubles(positives);
  call.resample.state = doubles(state);
  call.contrast = describe(rows, keys, positives, row_losses, temperature);
  call.consistency = consistency;
  const double loss = chosen().cgc(call, &parallel_for);
  return {scalar_tensor(loss, type), heatmaps, weights, rows, keys, positives, row_losses, state};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cgc_backward(
    const Tensor& grad_loss, const Tensor& features, const Tensor& gradients, const Tensor& aug_features,
    const Tensor& aug_gradients, const Tensor& transform, const Tensor& heatmaps, const Tensor& rows,
    const Tensor& keys, const Tensor& positives, const Tensor& row_losses, const Tensor& state, Index size_h,
    Index size_w, double temperature, bool, Index objective, double consistency, double eps, Index needs) {
  CgcBackward call{};
  const Tensor* inputs[4] = {&features, &gradients, &aug_features, &aug_gradients};
  Tensor grads[4];
  for (Index i = 0; i < 4; ++i) grads[i] = wanted(*inputs[i], (needs >> i & 1) != 0);
  STD_TORCH_CHECK(features.dim() == 4, "features must be [B, C, H, W]");
  const Index batch = features.size(0), height = features.size(2), width = features.size(3);
  const ScalarType type = accumulator(features);
  const bool float64 = type == ScalarType::Double;
  check(heatmaps, "heatmaps", {2, batch, height, width}, type);
  check(state, "state", {batch, 3, height, width}, ScalarType::Double);
  for (Index view = 0; view < 2; ++view) {
    CamBackward& cam = call.views[view];
    cam.forward = describe(*inputs[2 * view], *inputs[2 * view + 1], true);
    cam.forward.heatmaps =
        static_cast<char*>(heatmaps.mutable_data_ptr()) + view * batch * height * width * (float64 ? 8 : 4);
    cam.grad_features = writable(grads[2 * view]);
    cam.grad_gradients = writable(grads[2 * view + 1]);
  }
  check_alike(features, aug_features, call.views[0].forward, call.views[1].forward);
  const Index length = Objective(objective) == Objective::mse ? 0 : height * width;
  check(rows, "rows", {batch, length}, type);
  check(keys, "keys", {batch, length}, type);
  Tensor grad_rows = torch::stable::empty_like(rows), grad_keys = torch::stable::empty_like(keys);
  Tensor grad_positives = torch::stable::empty_like(positives);
  call.contrast = {describe(rows, keys, positives, row_losses, temperature), scalar(grad_loss), writable(grad_rows),
                   writable(grad_keys), doubles(grad_positives)};
  Resample& resample = call.resample.forward;
  resample = describe(batch, height, width, float64, transform, size_h, size_w, eps, objective);
  resample.heatmaps = call.views[0].forward.heatmaps;
  resample.aug_heatmaps = call.views[1].forward.heatmaps;
  resample.positives = doubles(positives);
  resample.state = doubles(state);
  call.resample.grad_rows = writable(grad_rows);
  call.resample.grad_keys = writable(grad_keys);
  call.resample.grad_positives = doubles(grad_positives);
  call.consistency = consistency;
  chosen().cgc_backward(call, &parallel_for);
  return {grads[0], grads[1], grads[2], grads[3]};
}

}  // namespace
}  // namespace cgc

STABLE_TORCH_LIBRARY_IMPL(cgc_kernels, CPU, m) {
  m.impl("cam", TORCH_BOX(&cgc::cam));
  m.impl("cam_backward", TORCH_BOX(&cgc::cam_backward));
  m.impl("resample", TORCH_BOX(&cgc::resample));
  m.impl("resample_backward", TORCH_BOX(&cgc::resample_backward));
  m.impl("contrast", TORCH_BOX(&cgc::contrast));
  m.impl("contrast_backward", TORCH_BOX(&cgc::contrast_backward));
  m.impl("cgc", TORCH_BOX(&cgc::cgc));
  m.impl("cgc_backward", TORCH_BOX(&cgc::cgc_backward));
}

STABLE_TORCH_LIBRARY_IMPL(cgc_kernels, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&cgc::instruction_set));
}
